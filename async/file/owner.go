package file

import (
	"context"

	"github.com/caddy-usher/usher/async"
)

// Progress implements async.Store.
func (s *Store) Progress(_ context.Context, id string, attempt, percent int) error {
	s.ownMu.Lock()
	o := s.own[id]
	if o != nil && o.attempt == attempt {
		o.progress = percent
		s.ownMu.Unlock()
		return nil
	}
	s.ownMu.Unlock()
	return s.view(func(t *tx) error {
		if _, err := t.underWay(id, attempt); err != nil {
			return err
		}
		return nil
	})
}

// Renew implements async.Store. The lock on the database is the lease: nothing is
// written, and no attempt of this process is ever ended by another one.
func (s *Store) Renew(_ context.Context, owner string) (async.Renewal, error) {
	var renewal async.Renewal
	s.ownMu.Lock()
	defer s.ownMu.Unlock()
	for id, o := range s.own {
		if o.owner == owner && o.cancelling {
			renewal.Cancelled = append(renewal.Cancelled, async.Attempt{ID: id, Attempt: o.attempt})
		}
	}
	return renewal, nil
}

func (s *Store) claimed(id string, attempt int, owner string) {
	s.ownMu.Lock()
	defer s.ownMu.Unlock()
	s.own[id] = &ownAttempt{attempt: attempt, owner: owner, progress: -1}
}

func (s *Store) disown(id string) {
	s.ownMu.Lock()
	defer s.ownMu.Unlock()
	delete(s.own, id)
}

func (s *Store) cancelling(id string) {
	s.ownMu.Lock()
	defer s.ownMu.Unlock()
	if o := s.own[id]; o != nil {
		o.cancelling = true
	}
}
