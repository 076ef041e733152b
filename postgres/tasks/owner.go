package tasks

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
)

// own are the attempts that this process has claimed.
type own struct {
	mu       sync.Mutex
	attempts map[string]*ownAttempt // by id
	claims   map[string]bool        // under way, by their names in the database
}

type ownAttempt struct {
	attempt  int
	owner    string
	progress int
	told     time.Time // when the progress was stored
	settling int       // calls that may end it
}

// claiming lets a claim be known until done is called.
func (o *own) claiming(claim string) (done func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.claims[claim] = true
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.claims, claim)
	}
}

func (o *own) add(r *record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attempts[r.id] = &ownAttempt{attempt: r.attempt, owner: r.owner, progress: -1}
}

func (o *own) remove(id string, attempt int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a := o.attempts[id]; a != nil && a.attempt == attempt {
		delete(o.attempts, id)
	}
}

// settling says that a call is about to end an attempt, until done is called.
func (o *own) settling(id string, attempt int) (done func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.attempts[id]
	if a == nil || a.attempt != attempt {
		return func() {}
	}
	a.settling++
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		a.settling--
	}
}

// progress is that of an attempt of this process, or negative.
func (o *own) progress(id string, attempt int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a := o.attempts[id]; a != nil && a.attempt == attempt {
		return a.progress
	}
	return -1
}

// progressPause is how long the next progress of an attempt is not stored.
const progressPause = time.Second

// advance notes a progress. store says whether it is to be stored.
func (o *own) advance(id string, attempt, percent int) (known, store bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.attempts[id]
	if a == nil || a.attempt != attempt {
		return false, true
	}
	a.progress = percent
	if store = time.Since(a.told) > progressPause; store {
		a.told = time.Now()
	}
	return true, store
}

// Progress implements async.Store.
func (s *Store) Progress(ctx context.Context, id string, attempt, percent int) error {
	known, store := s.own.advance(id, attempt, percent)
	if known && !store {
		return s.over(ctx)
	}
	return s.update(ctx, func(t *tx) error {
		if !validID(id) {
			return async.ErrNotFound
		}
		tag, err := t.Exec(t.ctx, `UPDATE tasks SET progress = $3 WHERE id = $1 AND attempt = $2 AND state = 2`, id, attempt, percent)
		if err == nil && tag.RowsAffected() == 0 {
			if _, err = t.find(id); err == nil {
				err = async.ErrStale
			}
		}
		return err
	})
}

// running is an attempt as the database has it.
type running struct {
	id         string
	attempt    int
	cancelling bool
	claim      string
}

// Renew implements async.Store.
func (s *Store) Renew(ctx context.Context, owner string) (async.Renewal, error) {
	mine := s.own.of(owner)
	var all []running
	err := s.update(ctx, func(t *tx) error {
		t.queue(`INSERT INTO owners (name, session, renewed) VALUES ($1, $2, `+clock+`)
			ON CONFLICT (name) DO UPDATE SET beats = owners.beats + 1, session = excluded.session, renewed = excluded.renewed`, owner, s.session)
		t.queue(`SELECT id, attempt, cancelling, claim FROM tasks WHERE state = 2 AND owner = $1`, owner).Query(func(rows pgx.Rows) (err error) {
			all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r running, err error) {
				return r, row.Scan(&r.id, &r.attempt, &r.cancelling, &r.claim)
			})
			return err
		})
		return nil
	})
	if err != nil {
		return async.Renewal{}, err
	}
	renewal, stray := s.own.compare(owner, mine, all)
	for _, a := range stray {
		// The answer to its claim got lost: it is not under way.
		_, err := s.Settle(ctx, a.ID, a.Attempt, async.Outcome{State: async.Pending, Uncounted: true, Reason: "the connection to the database broke when it was to begin"})
		if err != nil && !errors.Is(err, async.ErrStale) && !errors.Is(err, async.ErrNotFound) {
			return renewal, nil //nolint:nilerr // the next call does it; the lease was renewed
		}
	}
	return renewal, nil
}

// of returns the attempts of an owner.
func (o *own) of(owner string) map[async.Attempt]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[async.Attempt]bool)
	for id, a := range o.attempts {
		if a.owner == owner {
			all[async.Attempt{ID: id, Attempt: a.attempt}] = true
		}
	}
	return all
}

// compare compares what the process had before with what the database has since. What
// is stray is under way in the database only.
func (o *own) compare(owner string, before map[async.Attempt]bool, stored []running) (renewal async.Renewal, stray []async.Attempt) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range stored {
		at := async.Attempt{ID: r.id, Attempt: r.attempt}
		delete(before, at)
		a := o.attempts[r.id]
		switch {
		case a != nil && a.attempt == r.attempt:
			if r.cancelling {
				renewal.Cancelled = append(renewal.Cancelled, at)
			}
		case a == nil && !o.claims[r.claim]:
			// Or it was settled since then, which the database will say.
			stray = append(stray, at)
		}
	}
	for at := range before {
		// What is not there any more was ended here, or by others.
		if a := o.attempts[at.ID]; a != nil && a.attempt == at.Attempt && a.owner == owner && a.settling == 0 {
			delete(o.attempts, at.ID)
			renewal.Lost = append(renewal.Lost, at)
		}
	}
	return renewal, stray
}

// beats are those of owners, as this process has seen them.
type beats struct {
	mu     sync.Mutex
	looked time.Time
	owners map[string]beat
}

type beat struct {
	n     int64
	since time.Time // on a clock that does not jump
}

// observe looks at the beats as long as the store is open.
func (s *Store) observe() {
	tick := time.NewTicker(s.options.Lease / 5)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		// What goes wrong is told to those who call.
		_, _ = s.look(s.ctx)
	}
}

// look looks at the beats. It returns the owners that are gone, with their last beats.
//
// An owner whose process has ended has no session any more: then the clock of the
// database says when its lease is over, also to a process that has just begun to look.
// A server that was down for a while leaves the others time to renew theirs.
func (s *Store) look(ctx context.Context) (gone map[string]int64, err error) {
	var found, ended map[string]int64
	err = s.view(ctx, func(t *tx) error {
		found, ended = make(map[string]int64), make(map[string]int64)
		rows, err := t.Query(t.ctx, `SELECT name, beats, greatest(renewed, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint) + $1 < `+clock+`
			AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = session
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
			FROM owners`, s.options.Lease.Microseconds())
		if err != nil {
			return err
		}
		var (
			name string
			n    int64
			over bool
		)
		_, err = pgx.ForEachRow(rows, []any{&name, &n, &over}, func() error {
			if found[name] = n; over {
				ended[name] = n
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	gone = s.seen.note(found, time.Now(), s.options.Lease)
	maps.Copy(gone, ended)
	return gone, nil
}

func (b *beats) note(found map[string]int64, now time.Time, lease time.Duration) (gone map[string]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// If this process could not look, the owners may not have been able to beat.
	blind := now.Sub(b.looked) > lease/2
	b.looked = now
	owners := make(map[string]beat, len(found))
	gone = make(map[string]int64)
	for name, n := range found {
		o, known := b.owners[name]
		if !known || o.n != n || blind {
			o = beat{n, now}
		}
		if owners[name] = o; now.Sub(o.since) >= lease {
			gone[name] = n
		}
	}
	b.owners = owners
	return gone
}

// Recover implements async.Store.
func (s *Store) Recover(ctx context.Context, owner string, decide func(async.Task) async.Outcome) (n int, err error) {
	gone, err := s.look(ctx)
	if err != nil {
		return 0, err
	}
	delete(gone, owner)
	for name, n := range gone {
		err := s.update(ctx, func(t *tx) error {
			t.queue(`DELETE FROM owners WHERE name = $1 AND beats = $2`, name, n)
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	const lost = `state = 2 AND owner <> $2 AND NOT EXISTS (SELECT FROM owners WHERE name = tasks.owner)`
	numbers, groups, err := s.candidates(ctx, `SELECT number, group_key FROM tasks WHERE $1::bigint[] IS NULL AND `+lost+` ORDER BY number LIMIT 100`, nil, owner)
	if err != nil || len(numbers) == 0 {
		return 0, err
	}
	err = s.update(ctx, func(t *tx) error {
		n = 0
		all, err := t.lockSome(numbers, groups, lost, owner)
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := t.settle(r, decide(s.task(r)), nil); err != nil {
				return err
			}
		}
		n = len(all)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// candidates returns the numbers of tasks, and the groups that they are in.
func (s *Store) candidates(ctx context.Context, sql string, args ...any) (numbers, groups []int64, err error) {
	err = s.view(ctx, func(t *tx) error {
		numbers, groups = nil, nil
		rows, err := t.Query(t.ctx, sql, args...)
		if err != nil {
			return err
		}
		var (
			number int64
			group  *int64
		)
		_, err = pgx.ForEachRow(rows, []any{&number, &group}, func() error {
			numbers = append(numbers, number)
			if group != nil {
				groups = append(groups, *group)
			}
			return nil
		})
		return err
	})
	return numbers, groups, err
}
