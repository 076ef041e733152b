package tasks

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/caddy-usher/usher/async"
)

// Claim implements async.Store.
func (s *Store) Claim(ctx context.Context, owner, queue string, n int) (tasks []async.Task, err error) {
	claim := rand.Text()
	defer s.own.claiming(claim)()
	const rounds = 1000 // each ends what has expired, or finds that another claim was faster
	for range rounds {
		round := claimRound{owner: owner, queue: queue, claim: claim}
		err := s.update(ctx, func(t *tx) error {
			round.begun, round.expired, round.again = nil, nil, false
			return t.claim(&round, n-len(tasks))
		})
		if err == nil {
			for _, r := range round.begun {
				s.own.add(r)
				tasks = append(tasks, s.task(r))
			}
			if len(round.expired) > 0 {
				round.again = true
				_, err = s.expire(ctx, round.expired)
			}
		}
		switch {
		case len(tasks) == n || err == nil && !round.again:
			return tasks, nil
		case err != nil && len(tasks) == 0:
			return nil, err
		case err != nil:
			return tasks, nil // which are under way
		}
	}
	return tasks, nil
}

// claimRound is one transaction of a claim, and what came of it.
type claimRound struct {
	owner, queue, claim string

	begun   []*record
	expired []*record // they were the oldest; they are to be ended
	again   bool      // there may be more
}

// candidate is a task that can begin.
type candidate struct {
	place  int64
	record *record // it is this transaction's; nil: of an exclusive name
	name   string
	number int64
}

// promoteMost bounds how many tasks whose time has come are made ready at once.
const promoteMost = 1000

func (t *tx) claim(c *claimRound, n int) error {
	var (
		known      int
		candidates []candidate
	)
	// While this transaction runs, the owner cannot be removed.
	t.queue(`SELECT 1 FROM owners WHERE name = $1 FOR KEY SHARE`, c.owner).Query(func(rows pgx.Rows) (err error) {
		all, err := pgx.CollectRows(rows, pgx.RowTo[int])
		known = len(all)
		return err
	})
	t.queue(`UPDATE tasks SET phase = 1 WHERE number IN
		(SELECT number FROM tasks WHERE queue = $1 AND phase = 2 AND due <= `+clock+` ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED)`,
		c.queue, promoteMost).Exec(func(tag pgconn.CommandTag) error {
		c.again = tag.RowsAffected() == promoteMost
		return nil
	})
	t.time()
	t.queue(`SELECT `+columns+` FROM tasks WHERE queue = $1 AND phase = 1 AND exclusive = '' ORDER BY place LIMIT $2 FOR UPDATE SKIP LOCKED`,
		c.queue, n).Query(func(rows pgx.Rows) error {
		all, err := pgx.CollectRows(rows, scan)
		for _, r := range all {
			candidates = append(candidates, candidate{place: r.place, record: r})
		}
		return err
	})
	t.queue(`SELECT x.name, first.number, first.place FROM exclusives AS x CROSS JOIN LATERAL
		(SELECT number, place FROM tasks WHERE queue = $1 AND phase = 1 AND exclusive = x.name ORDER BY place LIMIT 1) AS first
		WHERE x.holder IS NULL AND x.name <> ''`, c.queue).Query(func(rows pgx.Rows) error {
		var f candidate
		_, err := pgx.ForEachRow(rows, []any{&f.name, &f.number, &f.place}, func() error {
			candidates = append(candidates, f)
			return nil
		})
		return err
	})
	if err := t.flush(); err != nil {
		return err
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.place, b.place) })
	chosen, err := t.choose(c, candidates[:min(n, len(candidates))])
	if err != nil {
		return err
	}
	for _, r := range chosen {
		if err := t.secrets.unseal(r); err != nil {
			return err
		}
		if r.expires > 0 && r.expires <= t.now {
			c.expired = append(c.expired, r)
			continue
		}
		if err := t.begin(r, c.owner, c.claim); err != nil {
			return err
		}
		c.begun = append(c.begun, r)
	}
	if known == 0 && len(c.begun) > 0 {
		t.queue(`INSERT INTO owners (name, session, renewed) VALUES ($1, $2, `+clock+`) ON CONFLICT DO NOTHING`, c.owner, t.store.session)
		t.queue(`SELECT FROM owners WHERE name = $1 FOR KEY SHARE`, c.owner)
	}
	return nil
}

// choose returns the records of the candidates that can be had, in their order.
func (t *tx) choose(c *claimRound, candidates []candidate) (chosen []*record, err error) {
	var (
		names   []string
		numbers []int64
		free    = make(map[string]bool)
		locked  = make(map[int64]*record)
	)
	for _, f := range candidates {
		if f.record == nil {
			names, numbers = append(names, f.name), append(numbers, f.number)
		}
	}
	if names != nil {
		t.queue(`SELECT name FROM exclusives WHERE name = ANY($1) AND holder IS NULL ORDER BY name FOR UPDATE SKIP LOCKED`, names).Query(func(rows pgx.Rows) error {
			var name string
			_, err := pgx.ForEachRow(rows, []any{&name}, func() error {
				free[name] = true
				return nil
			})
			return err
		})
		t.queue(`SELECT `+columns+` FROM tasks WHERE number = ANY($1) AND phase = 1 FOR UPDATE SKIP LOCKED`, numbers).Query(func(rows pgx.Rows) error {
			all, err := pgx.CollectRows(rows, scan)
			for _, r := range all {
				locked[r.number] = r
			}
			return err
		})
		if err := t.flush(); err != nil {
			return nil, err
		}
	}
	for _, f := range candidates {
		r := f.record
		if r == nil {
			if r = locked[f.number]; r == nil || !free[f.name] {
				c.again = true
				continue
			}
		}
		chosen = append(chosen, r)
	}
	return chosen, nil
}
