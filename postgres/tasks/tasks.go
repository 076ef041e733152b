package tasks

import (
	"context"
	"errors"
	"io"

	"github.com/caddy-usher/usher/async"
)

// Get implements async.Store.
func (s *Store) Get(ctx context.Context, id string) (task async.Task, err error) {
	err = s.known(ctx, id, func(_ *tx, r *record) error {
		task = s.task(r)
		return nil
	})
	return task, err
}

// known calls f with a record.
func (s *Store) known(ctx context.Context, id string, f func(*tx, *record) error) error {
	return s.view(ctx, func(t *tx) error {
		if !validID(id) {
			return async.ErrNotFound
		}
		r, err := t.find(id)
		if err != nil {
			return err
		}
		return f(t, r)
	})
}

// Body implements async.Store.
func (s *Store) Body(ctx context.Context, id string) (body io.ReadCloser, err error) {
	err = s.known(ctx, id, func(t *tx, r *record) error {
		body, err = reader(t.ctx, t, t.secrets, r, ofRequest, r.bodySize)
		return err
	})
	return body, err
}

// Result implements async.Store.
func (s *Store) Result(ctx context.Context, id string) (answer *async.Answer, err error) {
	err = s.known(ctx, id, func(t *tx, r *record) error {
		if r.status == 0 {
			return async.ErrNoResult
		}
		body, err := reader(t.ctx, t, t.secrets, r, ofAnswer, r.resultSize)
		if err == nil {
			answer = &async.Answer{Status: r.status, Header: r.header, Body: body, Size: r.resultSize}
		}
		return err
	})
	return answer, err
}

// change calls f with a record that is this transaction's alone.
func (s *Store) change(ctx context.Context, id string, f func(*tx, *record) error) error {
	return s.update(ctx, func(t *tx) error {
		if !validID(id) {
			return async.ErrNotFound
		}
		r, err := t.lock(id)
		if err != nil {
			return err
		}
		return f(t, r)
	})
}

// Settle implements async.Store.
func (s *Store) Settle(ctx context.Context, id string, attempt int, o async.Outcome) (task async.Task, err error) {
	if err := s.over(ctx); err != nil {
		return async.Task{}, err
	}
	var answer *body
	if o.Answer != nil && o.State.Final() && validID(id) {
		secrets, err := s.secrets(ctx)
		if err != nil {
			return async.Task{}, err
		}
		if answer, err = receive(o.Answer.Body, secrets, id, ofAnswer); err != nil {
			return async.Task{}, err
		}
		defer answer.close()
	}
	defer s.own.settling(id, attempt)()
	err = s.change(ctx, id, func(t *tx, r *record) error {
		if r.state != async.Running || r.attempt != attempt {
			return async.ErrStale
		}
		if err := t.settle(r, o, answer); err != nil {
			return err
		}
		task = s.task(r)
		return nil
	})
	if err != nil {
		return async.Task{}, err
	}
	return task, nil
}

// Cancel implements async.Store.
func (s *Store) Cancel(ctx context.Context, id string) (task async.Task, err error) {
	err = s.change(ctx, id, func(t *tx, r *record) (err error) {
		task = s.task(r)
		switch {
		case r.state.Final():
			return async.ErrFinished
		case r.state == async.Pending:
			err = t.finish(r, async.Cancelled, "")
		case !r.cancelling:
			r.cancelling = true
			err = t.changed(r)
		}
		task = s.task(r)
		return err
	})
	if err != nil && !errors.Is(err, async.ErrFinished) {
		return async.Task{}, err
	}
	return task, err
}

// Retry implements async.Store.
func (s *Store) Retry(ctx context.Context, id string) (task async.Task, err error) {
	err = s.change(ctx, id, func(t *tx, r *record) error {
		switch {
		case r.state == async.Done:
			return async.ErrFinished
		case !r.state.Final():
			return async.ErrUnfinished
		}
		occupied := false
		if err := t.QueryRow(t.ctx, `SELECT nextval('numbers'), EXISTS (SELECT FROM tasks WHERE queue = $1 AND group_key = $2 AND state <= 2)`,
			r.queue, r.group).Scan(&r.place, &occupied); err != nil {
			return err
		}
		r.state, r.phase = async.Pending, ready
		if occupied {
			r.phase = behind
		}
		r.counted, r.reason, r.ended, r.keptUntil, r.due = 0, "", 0, 0, t.now
		r.status, r.header, r.resultSize = 0, nil, 0
		t.queue(`DELETE FROM parts WHERE number = $1 AND kind = $2`, r.number, ofAnswer)
		task = s.task(r)
		return t.changed(r)
	})
	if err != nil {
		return async.Task{}, err
	}
	return task, nil
}

// Purge implements async.Store.
func (s *Store) Purge(ctx context.Context, id string) error {
	return s.change(ctx, id, func(t *tx, r *record) error {
		if !r.state.Final() {
			return async.ErrUnfinished
		}
		t.queue(`DELETE FROM parts WHERE number = $1`, r.number)
		t.queue(`DELETE FROM tasks WHERE number = $1`, r.number)
		return nil
	})
}
