package tasks

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
)

// Sweep implements async.Store.
func (s *Store) Sweep(ctx context.Context) (n int, err error) {
	due, err := s.expired(ctx)
	if err != nil {
		return 0, err
	}
	if due != nil {
		if n, err = s.expire(ctx, due); err != nil {
			return 0, err
		}
	}
	removed := 0
	err = s.update(ctx, func(t *tx) error {
		t.queue(`WITH gone AS (
				DELETE FROM tasks WHERE number IN
					(SELECT number FROM tasks WHERE kept_until > 0 AND kept_until <= ` + clock + ` ORDER BY kept_until LIMIT 200 FOR UPDATE SKIP LOCKED)
				RETURNING number
			), parts AS (DELETE FROM parts USING gone WHERE parts.number = gone.number)
			SELECT count(*) FROM gone`).QueryRow(func(row pgx.Row) error { return row.Scan(&removed) })
		return nil
	})
	if err != nil {
		return n, err
	}
	return n + removed, s.fold(ctx)
}

// expired returns the tasks that have expired, a bounded number of them.
func (s *Store) expired(ctx context.Context) (due []*record, err error) {
	numbers, groups, err := s.candidates(ctx, `SELECT number, group_key FROM tasks WHERE expires > 0 AND expires <= `+clock+` ORDER BY expires LIMIT 200`)
	for k, number := range numbers {
		r := &record{number: number}
		if k < len(groups) {
			r.group = &groups[k]
		}
		due = append(due, r)
	}
	return due, err
}

// expire ends tasks that have expired.
func (s *Store) expire(ctx context.Context, due []*record) (n int, err error) {
	var numbers, groups []int64
	for _, r := range due {
		numbers = append(numbers, r.number)
		if r.group != nil {
			groups = append(groups, *r.group)
		}
	}
	err = s.update(ctx, func(t *tx) error {
		n = 0
		all, err := t.lockSome(numbers, groups, `state = 1 AND expires > 0 AND expires <= `+clock)
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := t.finish(r, async.Dead, async.ReasonExpired); err != nil {
				return err
			}
		}
		n = len(all)
		return nil
	})
	return n, err
}

// fold adds up the changes of the counts. What another transaction adds up is left to
// it.
func (s *Store) fold(ctx context.Context) error {
	return s.update(ctx, func(t *tx) error {
		t.queue(`WITH old AS (
				DELETE FROM counts WHERE ctid IN (SELECT ctid FROM counts LIMIT 20000 FOR UPDATE SKIP LOCKED) RETURNING queue, kind, n
			)
			INSERT INTO counts SELECT queue, kind, sum(n) FROM old GROUP BY queue, kind HAVING sum(n) <> 0`)
		return nil
	})
}
