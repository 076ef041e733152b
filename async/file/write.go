package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/caddy-usher/usher/async"
)

// tx is a transaction, with what belongs to it.
type tx struct {
	*bbolt.Tx
	store *Store
	now   uint64 // stamp

	counts map[string]*counts // of the queues that were looked at

	// after the commit
	changes []async.Change
	unused  []string // files that no record names any more
	then    []func()
}

// batch is the writes of one transaction.
type batch struct {
	writes []*write
	done   chan struct{}
}

// write is one caller's part of a transaction. do returns errors of two kinds: a
// refusal, before which it has changed nothing, and a failure, with which the
// whole transaction fails.
type write struct {
	do  func(*tx) error
	err error
}

// failure is an error of the database or of a record, for which the transaction
// is given up.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

func failed(err error) error {
	if err == nil {
		return nil
	}
	return failure{err}
}

// update runs do in a transaction, together with what others do at the same time.
// It returns when that is on stable storage. A context that ends before the
// transaction has begun leaves do out.
func (s *Store) update(ctx context.Context, do func(*tx) error) error {
	w := &write{do: func(t *tx) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return do(t)
	}}
	s.joins.Lock()
	if s.batch == nil {
		s.batch = &batch{done: make(chan struct{})}
	}
	b := s.batch
	b.writes = append(b.writes, w)
	s.joins.Unlock()

	select {
	case <-b.done:
		return w.err
	case s.turn <- struct{}{}:
	}
	defer func() { <-s.turn }()
	select {
	case <-b.done: // another one has written it
		return w.err
	default:
	}
	s.joins.Lock()
	s.batch = nil
	s.joins.Unlock()
	s.commit(b)
	return w.err
}

// commit writes a batch. The turn is held.
func (s *Store) commit(b *batch) {
	defer close(b.done)
	for len(b.writes) > 0 {
		t, bad, err := s.attempt(b)
		switch {
		case bad >= 0:
			// The others can do without it.
			b.writes[bad].err = fmt.Errorf("%s: %w", s, b.writes[bad].err)
			b.writes = slices.Delete(b.writes, bad, bad+1)
			continue
		case err != nil:
			s.fail(b, err)
		default:
			t.tell()
		}
		return
	}
}

// attempt tries to write a batch. bad is the write that has failed, or negative.
func (s *Store) attempt(b *batch) (t *tx, bad int, err error) {
	bad = -1
	err = s.usable(func() error {
		return s.db.Update(func(bt *bbolt.Tx) error {
			t = s.begin(bt)
			for k, w := range b.writes {
				w.err = w.do(t)
				if _, ok := errors.AsType[failure](w.err); ok {
					bad = k
					return w.err
				}
			}
			return t.end()
		})
	})
	return t, bad, err
}

// tell does what follows the commit.
func (t *tx) tell() {
	for _, f := range t.then {
		f()
	}
	for _, name := range t.unused {
		_ = os.Remove(t.store.bodyPath(name)) // or the next Open does
	}
	t.store.Call(t.changes)
}

// usable calls f while the database may be written.
func (s *Store) usable(f func() error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return async.ErrClosed
	}
	if s.broken != nil {
		return s.broken
	}
	return f()
}

// brokenError says why nothing may be written any more.
type brokenError struct {
	store *Store
	err   error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("%s takes nothing more until Caddy is restarted, because what was written last may be on the disk or not: %v", e.store, e.err)
}

func (e *brokenError) Unwrap() error { return e.err }

// fail gives all writers of a batch the reason why it was not written.
func (s *Store) fail(b *batch, err error) {
	if _, known := errors.AsType[*brokenError](err); !known {
		if isDoubtful(err) {
			broken := &brokenError{s, err}
			s.mu.Lock()
			s.broken = broken
			s.mu.Unlock()
			err = broken
		} else {
			err = fmt.Errorf("%s: %w", s, err)
		}
	}
	for _, w := range b.writes {
		w.err = err
	}
}

// isDoubtful reports whether after an error of a commit it is not known what lies on
// the disk. A full disk is found before anything counts.
func isDoubtful(err error) bool {
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EFBIG, syscall.EDQUOT} {
		// bbolt keeps some of its causes as words only.
		if errors.Is(err, full) || strings.Contains(err.Error(), full.Error()) {
			return false
		}
	}
	for _, harmless := range []error{async.ErrClosed, berrors.ErrDatabaseNotOpen, berrors.ErrMaxSizeReached} {
		if errors.Is(err, harmless) {
			return false
		}
	}
	return true
}

// view runs f in a transaction that only reads.
func (s *Store) view(f func(*tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return async.ErrClosed
	}
	return s.db.View(func(bt *bbolt.Tx) error { return f(s.begin(bt)) })
}

func (s *Store) begin(bt *bbolt.Tx) *tx {
	return &tx{Tx: bt, store: s, now: stamp(s.now()), counts: make(map[string]*counts)}
}

// end writes what was kept back.
func (t *tx) end() error {
	if err := t.Bucket(metaBucket).Put(timeKey, number(t.now)); err != nil {
		return failed(err)
	}
	return t.putCounts()
}

// put and remove change a bucket.
func (t *tx) put(bucket, key, value []byte) error {
	b := t.Bucket(bucket)
	b.FillPercent = 0.9 // most keys grow
	return failed(b.Put(key, value))
}

func (t *tx) remove(bucket, key []byte) error {
	return failed(t.Bucket(bucket).Delete(key))
}
