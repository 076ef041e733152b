package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// newRevision makes a revision that is not open yet.
func (l *Loop) newRevision(b scaler.Backend) *revision {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made++
	return &revision{loop: l, number: l.made, backend: b}
}

// open makes a new revision, the current one.
func (l *Loop) open(b scaler.Backend) error {
	err := l.openRevision(l.newRevision(b))
	if err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current() == nil {
		// Nothing can be started, and nothing is there to try again: waiting
		// requests get the reason now.
		l.startFailed(forGood(err), time.Now())
	}
	return err
}

// openAnyway makes a new revision, the current one. If its backend cannot be
// opened, the service is failing, and the next start opens it.
func (l *Loop) openAnyway(b scaler.Backend) error {
	r := l.newRevision(b)
	err := l.openRevision(r)
	if err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	l.mu.Lock()
	l.revisions = append(l.revisions, r)
	now := time.Now()
	l.fresh(now)
	l.startFailed(forGood(err), now)
	l.mu.Unlock()
	l.Trigger()
	return nil
}

// reopen makes a new revision of the same backend, for a restart. What the
// backend took from variables and files is read anew. If something is missing
// that a start needs, the instances that run stay: they are better than none.
func (l *Loop) reopen(b scaler.Backend) error {
	if r, ok := b.(scaler.Refresher); ok {
		if err := r.Refresh(); err != nil {
			return fmt.Errorf("service %s keeps its instances, because new ones cannot be made: %w", l.env.Service, err)
		}
	}
	if c, ok := b.(scaler.Checker); ok {
		if f := c.Check(); f != nil {
			return fmt.Errorf("service %s keeps its instances, because new ones cannot be started: %w", l.env.Service, f)
		}
	}
	return l.open(b)
}

// forGood returns the failure of a backend that cannot be opened.
func forGood(err error) *scaler.Failure {
	f := *scaler.AsFailure(err)
	f.ForGood = true
	return &f
}

// openRevision opens the backend of r and makes r the current revision. If it
// fails, it changes nothing. If something is missing that a start needs, the
// service is failing at once: it does not need a request to find out.
func (l *Loop) openRevision(r *revision) error {
	env := l.env
	env.Revision = r.id()
	env.Report = r.report
	s, err := r.backend.Open(env)
	if err != nil {
		return err
	}

	// Without the lock: a Scaler may report with its own lock held.
	traits := s.Traits()
	var missing *scaler.Failure
	if c, ok := r.backend.(scaler.Checker); ok {
		missing = c.Check()
	}

	l.mu.Lock()
	if !l.mayOpen() {
		// Nothing else knows of it.
		stop := l.settings.StopTimeout
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), stop+orderTimeout)
		defer cancel()
		return errors.Join(ErrClosed, s.Close(ctx, stop))
	}
	now := time.Now()
	r.scaler, r.traits = s, traits
	if !slices.Contains(l.revisions, r) {
		l.revisions = append(l.revisions, r)
	}
	if l.current() == r {
		l.fresh(now)
	}
	if r.early != nil {
		l.take(r, *r.early)
		r.early = nil
	}
	if missing != nil && l.current() == r {
		l.startFailed(forGood(missing), now)
	}
	l.mu.Unlock()
	l.Trigger()
	return nil
}

// openLate opens the backend of a revision that could not be opened before. It
// returns false if the backend is open already.
func (l *Loop) openLate(r *revision) (late bool, err error) {
	l.mu.Lock()
	open := r.scaler != nil
	l.mu.Unlock()
	if open {
		return false, nil
	}
	if err := l.openRevision(r); err != nil {
		return true, forGood(err)
	}
	return true, nil
}
