package tasks

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
)

// How many tasks are accepted in one transaction, and how large their bodies are
// together, in bytes. A body above soloFrom goes on its own.
const (
	batchMost      = 64
	batchBytesMost = 4 << 20
	soloFrom       = memoryMost
)

// nameMost is the length of the longest queue or exclusive name: keys of an index
// have a limit.
const nameMost = 1 << 10

// puts are the tasks that wait to be accepted. The one who has the turn accepts for
// all.
type puts struct {
	turn chan struct{}

	mu      sync.Mutex
	waiting []*acceptance
}

// acceptance is a task that is to be accepted.
type acceptance struct {
	ctx  context.Context
	new  async.NewTask
	id   string
	body *body
	data []byte // sealed
	key  []byte // hash; nil: none
	// print is that of the request and its body.
	print []byte
	group *int64

	done chan struct{} // closed when the rest is there

	number  int64 // 0: not chosen yet
	existed bool
	record  *record
	err     error
}

// accepting prepares a task with a body in memory.
func (s *Store) accepting(secrets *secrets, n async.NewTask, body []byte) (*acceptance, error) {
	return accepting(secrets, n, bytes.NewReader(body))
}

func accepting(secrets *secrets, n async.NewTask, r io.Reader) (*acceptance, error) {
	if len(n.Queue) > nameMost || len(n.Exclusive) > nameMost || strings.ContainsRune(n.Queue+n.Exclusive, 0) {
		return nil, fmt.Errorf("the name of a queue, and an exclusive name, have at most %d bytes, none of them 0", nameMost)
	}
	a := &acceptance{new: n, id: rand.Text(), done: make(chan struct{})}
	text, err := json.Marshal(data{n.Request, n.Client, n.Group, n.Key, n.Callback})
	if err != nil {
		return nil, err
	}
	a.data = secrets.seal(text, a.id)
	if a.body, err = receive(r, secrets, a.id, ofRequest); err != nil {
		return nil, err
	}
	if n.Group != "" {
		k := secrets.number("group", n.Queue, n.Group)
		a.group = &k
	}
	if n.Key != "" {
		a.key = secrets.hash("key", n.Queue, n.Key)
		h := sha256.New()
		h.Write([]byte(n.Fingerprint))
		h.Write(a.body.sum[:])
		a.print = secrets.hash("print", string(h.Sum(nil)))
	}
	return a, nil
}

// Put implements async.Store.
func (s *Store) Put(ctx context.Context, n async.NewTask, r io.Reader) (async.Task, bool, error) {
	if err := s.over(ctx); err != nil {
		return async.Task{}, false, err
	}
	secrets, err := s.secrets(ctx)
	if err != nil {
		return async.Task{}, false, err
	}
	a, err := accepting(secrets, n, r)
	if err != nil {
		return async.Task{}, false, err
	}
	defer a.body.close()
	if a.ctx = ctx; a.body.size > soloFrom {
		s.accept(ctx, []*acceptance{a})
	} else if err := s.wait(ctx, a); err != nil {
		return async.Task{}, false, err
	}
	if a.err != nil {
		return async.Task{}, false, a.err
	}
	return s.task(a.record), a.existed, nil
}

// wait returns when a is done. It accepts for all that wait if that is needed.
func (s *Store) wait(ctx context.Context, a *acceptance) error {
	s.puts.mu.Lock()
	s.puts.waiting = append(s.puts.waiting, a)
	s.puts.mu.Unlock()
	select {
	case <-a.done:
		return nil
	case s.puts.turn <- struct{}{}:
	case <-ctx.Done():
		if s.puts.remove(a) {
			return context.Cause(ctx)
		}
		// It is under way, and its body in use.
		<-a.done
		return nil
	}
	defer func() { <-s.puts.turn }()
	for {
		select {
		case <-a.done:
			return nil
		default:
		}
		// The others do not wait for the patience of one.
		s.accept(context.WithoutCancel(ctx), s.puts.take())
	}
}

// remove takes a out of those that wait, if it does.
func (p *puts) remove(a *acceptance) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := slices.Index(p.waiting, a)
	if k >= 0 {
		p.waiting = slices.Delete(p.waiting, k, k+1)
	}
	return k >= 0
}

// take returns those that go together. It ends those whose callers have gone.
func (p *puts) take() (all []*acceptance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	size, n := int64(0), 0
	for _, a := range p.waiting {
		if len(all) > 0 && (len(all) == batchMost || size+a.body.size > batchBytesMost) {
			break
		}
		n++
		if err := context.Cause(a.ctx); err != nil {
			a.err = err
			close(a.done)
			continue
		}
		size += a.body.size
		all = append(all, a)
	}
	p.waiting = slices.Delete(p.waiting, 0, n)
	return all
}

// accept accepts tasks in one transaction, and says of each what came of it.
func (s *Store) accept(ctx context.Context, all []*acceptance) {
	if len(all) == 0 {
		return
	}
	err := s.update(ctx, func(t *tx) error {
		for _, a := range all {
			a.number, a.existed, a.record, a.err = 0, false, nil, nil
			if a.body.size > soloFrom {
				// The others do not wait for it with their locks.
				if err := t.QueryRow(t.ctx, `SELECT nextval('numbers')`).Scan(&a.number); err != nil {
					return err
				}
				if err := t.putBody(a.number, ofRequest, a.body); err != nil {
					return err
				}
			}
		}
		return t.accept(all)
	})
	for _, a := range all {
		if err != nil {
			a.err = err
		}
		close(a.done)
	}
}

func (t *tx) accept(all []*acceptance) error {
	var (
		locks []int64
		keys  [][]byte
	)
	limited := make(map[string]int64) // unfinished tasks of queues with a limit
	for _, a := range all {
		if a.new.MaxTasks > 0 {
			limited[a.new.Queue] = 0
			locks = append(locks, t.secrets.number("queue", a.new.Queue))
		}
		if a.group != nil {
			locks = append(locks, *a.group)
		}
		if a.key != nil {
			keys = append(keys, a.key)
			locks = append(locks, t.secrets.number("key", string(a.key)))
		}
	}
	t.locks(locks)
	for queue := range limited {
		t.queue(`SELECT coalesce(sum(n), 0)::bigint FROM counts WHERE queue = $1 AND kind IN (1, 2)`, queue).QueryRow(func(row pgx.Row) error {
			var n int64
			err := row.Scan(&n)
			limited[queue] = n
			return err
		})
	}
	existing := make(map[string]*record)
	if keys != nil {
		t.queue(`SELECT `+columns+`, key_hash, print FROM tasks WHERE key_hash = ANY($1)`, keys).Query(func(rows pgx.Rows) error {
			found, err := pgx.CollectRows(rows, scanKeyed)
			for _, r := range found {
				existing[string(r.keyHash)] = r
			}
			return err
		})
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, r := range existing {
		if err := t.secrets.unseal(r); err != nil {
			return err
		}
	}
	var accepted []*acceptance
	first := make(map[string]*acceptance) // of this transaction, by key
	for _, a := range all {
		if earlier := existing[string(a.key)]; earlier != nil {
			a.existed, a.record = true, earlier
			if !bytes.Equal(earlier.print, a.print) {
				a.err = async.ErrKeyReused
			}
			continue
		}
		if earlier := first[string(a.key)]; earlier != nil && a.key != nil {
			a.existed = true
			if !bytes.Equal(earlier.print, a.print) {
				a.err = async.ErrKeyReused
			}
			continue
		}
		if most := a.new.MaxTasks; most > 0 {
			if limited[a.new.Queue] >= int64(most) {
				a.err = async.ErrFull
				continue
			}
		}
		if _, ok := limited[a.new.Queue]; ok {
			limited[a.new.Queue]++
		}
		if a.key != nil {
			first[string(a.key)] = a
		}
		accepted = append(accepted, a)
	}
	if err := t.insert(accepted); err != nil {
		return err
	}
	for _, a := range all {
		if a.existed && a.record == nil {
			a.record = first[string(a.key)].record
		}
		if a.number > 0 && (a.existed || a.err != nil) {
			t.queue(`DELETE FROM parts WHERE number = $1`, a.number)
		}
	}
	return nil
}

func scanKeyed(row pgx.CollectableRow) (*record, error) {
	r := new(record)
	err := row.Scan(append(r.fields(), &r.keyHash, &r.print)...)
	return r, err
}

// insert adds tasks. The caller has the locks of their groups.
func (t *tx) insert(all []*acceptance) error {
	if len(all) == 0 {
		return nil
	}
	var (
		numbers []int64
		queues  []string
		groups  []int64
	)
	for _, a := range all {
		if a.group != nil {
			queues, groups = append(queues, a.new.Queue), append(groups, *a.group)
		}
	}
	t.time()
	t.queue(`SELECT nextval('numbers') FROM generate_series(1, $1::integer)`, len(all)).Query(func(rows pgx.Rows) (err error) {
		numbers, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	type group struct {
		queue string
		key   int64
	}
	occupied := make(map[group]bool)
	if groups != nil {
		t.queue(`SELECT queue, key FROM (SELECT DISTINCT queue, key FROM unnest($1::text[], $2::bigint[]) AS g (queue, key)) AS g
			WHERE EXISTS (SELECT FROM tasks WHERE tasks.queue = g.queue AND group_key = g.key AND state <= 2)`, queues, groups).Query(func(rows pgx.Rows) error {
			var g group
			_, err := pgx.ForEachRow(rows, []any{&g.queue, &g.key}, func() error {
				occupied[g] = true
				return nil
			})
			return err
		})
	}
	if err := t.flush(); err != nil {
		return err
	}
	slices.Sort(numbers)
	exclusives := make(map[string]bool)
	for k, a := range all {
		phase := ready
		if a.group != nil {
			g := group{a.new.Queue, *a.group}
			if occupied[g] {
				phase = behind
			}
			occupied[g] = true
		}
		a.record = t.newRecord(a, numbers[k], phase)
		if a.new.Exclusive != "" {
			exclusives[a.new.Exclusive] = true
		}
		t.changes = append(t.changes, async.Change{Queue: a.new.Queue, ID: a.id, State: async.Pending})
	}
	t.insertRows(all)
	for _, a := range all {
		if a.number > 0 {
			continue
		}
		if err := t.putBody(a.record.number, ofRequest, a.body); err != nil {
			return err
		}
	}
	for name := range exclusives {
		t.queue(`INSERT INTO exclusives (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM exclusives WHERE name = $1) ON CONFLICT DO NOTHING`, name)
	}
	return nil
}

func (t *tx) newRecord(a *acceptance, place int64, phase int) *record {
	n := a.new
	r := &record{
		number: a.number, place: place, id: a.id, queue: n.Queue, exclusive: n.Exclusive, group: a.group, state: async.Pending, phase: phase,
		progress: -1, keep: n.Keep, bodySize: a.body.size, accepted: t.now, due: t.now,
		data: data{n.Request, n.Client, n.Group, n.Key, n.Callback},
	}
	if r.number == 0 {
		r.number = place
	}
	if n.Expires > 0 {
		r.expires = after(t.now, n.Expires)
	}
	return r
}

func (t *tx) insertRows(all []*acceptance) {
	var (
		numbers, places, keeps, sizes, accepted, expires []int64
		phases                                           []int16
		ids, queues, exclusives                          []string
		groups                                           []*int64
		keys, prints, datas                              [][]byte
	)
	for _, a := range all {
		r := a.record
		numbers, places, ids, queues = append(numbers, r.number), append(places, r.place), append(ids, r.id), append(queues, r.queue)
		exclusives = append(exclusives, r.exclusive)
		groups, keys, prints = append(groups, r.group), append(keys, a.key), append(prints, a.print)
		phases, keeps, sizes = append(phases, int16(r.phase)), append(keeps, int64(r.keep)), append(sizes, r.bodySize)
		accepted, expires, datas = append(accepted, r.accepted), append(expires, r.expires), append(datas, a.data)
	}
	t.queue(`INSERT INTO tasks (number, place, id, queue, exclusive, group_key, key_hash, print, state, phase, keep, body_size, due, accepted, expires, data)
		SELECT number, place, id, queue, exclusive, group_key, key_hash, print, 1, phase, keep, body_size, n.accepted AS due, accepted, expires, data
		FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bytea[], $7::bytea[], $8::smallint[], $9::bigint[], $10::bigint[],
			$11::bigint[], $12::bigint[], $13::bytea[], $14::bigint[])
		AS n (number, id, queue, exclusive, group_key, key_hash, print, phase, keep, body_size, accepted, expires, data, place)`,
		numbers, ids, queues, exclusives, groups, keys, prints, phases, keeps, sizes, accepted, expires, datas, places)
}
