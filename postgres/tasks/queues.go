package tasks

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/caddy-usher/usher/async"
)

// counts are those of one queue, by kind.
type counts [readyKind + 1]int

func (t *tx) counts() (map[string]*counts, error) {
	rows, err := t.Query(t.ctx, `SELECT queue, kind, sum(n)::bigint FROM counts GROUP BY queue, kind HAVING sum(n) <> 0`)
	if err != nil {
		return nil, err
	}
	all := make(map[string]*counts)
	var (
		queue   string
		kind, n int
	)
	_, err = pgx.ForEachRow(rows, []any{&queue, &kind, &n}, func() error {
		if all[queue] == nil {
			all[queue] = new(counts)
		}
		if kind > 0 && kind <= readyKind {
			all[queue][kind] = n
		}
		return nil
	})
	return all, err
}

// Queues implements async.Store.
func (s *Store) Queues(ctx context.Context) (map[string]async.Queue, error) {
	if err := s.promoteAll(ctx); err != nil {
		return nil, err
	}
	var queues map[string]async.Queue
	err := s.view(ctx, func(t *tx) error {
		queues = make(map[string]async.Queue)
		all, err := t.counts()
		if err != nil {
			return err
		}
		names := make([]string, 0, len(all))
		for name, c := range all {
			q := async.Queue{NextDue: -1, Runnable: c[readyKind]}
			copy(q.States[:], c[:async.Cancelled+1])
			queues[name] = q
			names = append(names, name)
		}
		return t.fronts(queues, names)
	})
	return queues, err
}

// fronts adds to the queues what their first tasks tell.
func (t *tx) fronts(queues map[string]async.Queue, names []string) error {
	type first struct{ place, accepted int64 }
	oldest := make(map[string]first)
	note := func(name string, place, accepted *int64) {
		if place == nil {
			return
		}
		if o, ok := oldest[name]; !ok || *place < o.place {
			oldest[name] = first{*place, *accepted}
		}
	}
	t.time()
	t.queue(`SELECT q, first.place, first.accepted, next.due FROM unnest($1::text[]) AS q
		LEFT JOIN LATERAL (SELECT place, accepted FROM tasks WHERE queue = q AND phase = 1 AND exclusive = '' ORDER BY place LIMIT 1) AS first ON true
		LEFT JOIN LATERAL (SELECT due FROM tasks WHERE queue = q AND phase = 2 ORDER BY due LIMIT 1) AS next ON true`, names).Query(func(rows pgx.Rows) error {
		var (
			name                 string
			place, accepted, due *int64
		)
		_, err := pgx.ForEachRow(rows, []any{&name, &place, &accepted, &due}, func() error {
			note(name, place, accepted)
			if due != nil {
				q := queues[name]
				q.NextDue = max(0, time.Duration(*due-t.now)*time.Microsecond)
				queues[name] = q
			}
			return nil
		})
		return err
	})
	t.queue(`SELECT q, first.place, first.accepted FROM unnest($1::text[]) AS q CROSS JOIN exclusives AS x
		CROSS JOIN LATERAL (SELECT place, accepted FROM tasks WHERE queue = q AND phase = 1 AND exclusive = x.name ORDER BY place LIMIT 1) AS first
		WHERE x.holder IS NULL AND x.name <> ''`, names).Query(func(rows pgx.Rows) error {
		var (
			name            string
			place, accepted int64
		)
		_, err := pgx.ForEachRow(rows, []any{&name, &place, &accepted}, func() error {
			note(name, &place, &accepted)
			q := queues[name]
			q.Runnable++
			queues[name] = q
			return nil
		})
		return err
	})
	if err := t.flush(); err != nil {
		return err
	}
	for name, o := range oldest {
		q := queues[name]
		q.Oldest = max(0, time.Duration(t.now-o.accepted)*time.Microsecond)
		queues[name] = q
	}
	return nil
}

// promoteAll makes all tasks ready whose time has come.
func (s *Store) promoteAll(ctx context.Context) error {
	for more := true; more; {
		err := s.update(ctx, func(t *tx) error {
			t.queue(`UPDATE tasks SET phase = 1 WHERE number IN (SELECT number FROM
				(SELECT DISTINCT queue FROM counts) AS q
				CROSS JOIN LATERAL (SELECT number FROM tasks WHERE tasks.queue = q.queue AND phase = 2 AND due <= `+clock+` ORDER BY due LIMIT $1 FOR UPDATE SKIP LOCKED) AS due)`,
				promoteMost).Exec(func(tag pgconn.CommandTag) error {
				more = tag.RowsAffected() >= promoteMost
				return nil
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// List implements async.Store.
func (s *Store) List(ctx context.Context, f async.Filter) (page async.Page, err error) {
	if f.Limit <= 0 {
		f.Limit = async.PageSize
	}
	from, err := parseCursor(f.After)
	if err != nil {
		return page, err
	}
	states := async.States
	if f.State != 0 {
		states = []async.State{f.State}
	}
	err = s.view(ctx, func(t *tx) error {
		page = async.Page{}
		all, err := t.counts()
		if err != nil {
			return err
		}
		var queues []string
		for name := range all {
			if f.Queue == "" || f.Queue == name {
				queues = append(queues, name)
			}
		}
		slices.Sort(queues)
		for _, queue := range queues {
			for _, state := range states {
				after, skip := from.after(queue, state)
				if skip || all[queue][state] == 0 {
					continue
				}
				if done, err := t.list(&page, f.Limit, queue, state, after); done || err != nil {
					return err
				}
			}
		}
		return nil
	})
	return page, err
}

// list adds to a page the tasks of a queue in a state. done says that the page is
// full.
func (t *tx) list(page *async.Page, limit int, queue string, state async.State, after int64) (done bool, err error) {
	rows, err := t.Query(t.ctx, `SELECT `+columns+` FROM tasks WHERE queue = $1 AND state = $2 AND number > $3 ORDER BY number LIMIT $4`,
		queue, state, after, limit-len(page.Tasks)+1)
	if err != nil {
		return false, err
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return false, err
	}
	for _, r := range all {
		if len(page.Tasks) == limit {
			page.Next = t.last.String()
			return true, nil
		}
		if err := t.secrets.unseal(r); err != nil {
			return false, err
		}
		page.Tasks = append(page.Tasks, t.store.task(r))
		t.last = cursor{queue, state, r.number}
	}
	return false, nil
}

// cursor is the place of a task in a list.
type cursor struct {
	queue  string
	state  async.State
	number int64
}

func (c cursor) String() string {
	b := append(binary.BigEndian.AppendUint64(nil, uint64(c.number)), byte(c.state))
	return base64.RawURLEncoding.EncodeToString(append(b, c.queue...))
}

func parseCursor(text string) (cursor, error) {
	if text == "" {
		return cursor{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 9 {
		return cursor{}, errors.New("the place in the list from which to go on is not one that a list has told")
	}
	return cursor{string(b[9:]), async.State(b[8]), int64(binary.BigEndian.Uint64(b))}, nil
}

// after returns behind which number the list goes on in a queue and a state, and
// whether it has passed all of that.
func (c cursor) after(queue string, state async.State) (number int64, skip bool) {
	switch {
	case queue < c.queue || queue == c.queue && state < c.state:
		return 0, true
	case queue == c.queue && state == c.state:
		return c.number, false
	}
	return 0, false
}
