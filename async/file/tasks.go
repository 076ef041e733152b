package file

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/caddy-usher/usher/async"
)

// nameMost is the length of the longest queue or exclusive name: keys of the
// database have a limit.
const nameMost = 4 << 10

// Put implements async.Store.
func (s *Store) Put(ctx context.Context, n async.NewTask, body io.Reader) (async.Task, bool, error) {
	if len(n.Queue) > nameMost || len(n.Exclusive) > nameMost {
		return async.Task{}, false, fmt.Errorf("the name of a queue, and an exclusive name, have at most %d bytes", nameMost)
	}
	received, err := s.receive(body)
	if err != nil {
		return async.Task{}, false, err
	}
	var task async.Task
	existed := false
	err = s.update(ctx, func(t *tx) error {
		existed = false
		if n.Key != "" {
			earlier, err := t.byKey(n, received)
			if err != nil {
				return err
			}
			if existed = earlier != nil; existed {
				task = s.task(earlier)
				return nil
			}
		}
		c, err := t.countsOf(n.Queue)
		if err != nil {
			return err
		}
		if n.MaxTasks > 0 && c.States[async.Pending]+c.States[async.Running] >= n.MaxTasks {
			return async.ErrFull
		}
		r, err := t.accept(n, received, newRandom())
		if err != nil {
			return err
		}
		task = s.task(r)
		return nil
	})
	if err != nil || existed {
		// With a failed commit it may be named all the same: then Body says so.
		if _, doubtful := errors.AsType[*brokenError](err); !doubtful {
			s.discard(received)
		}
	}
	if err != nil {
		return async.Task{}, false, err
	}
	return task, existed, nil
}

// byKey returns the task with the key of n, or nil.
func (t *tx) byKey(n async.NewTask, body *received) (*record, error) {
	v := t.Bucket(keysBucket).Get(t.store.keyKey(n.Queue, n.Key))
	if v == nil {
		return nil, nil
	}
	r, err := t.mustLoad(v)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(r.Print, fingerprint(n, body)) {
		return nil, async.ErrKeyReused
	}
	return r, nil
}

// mustLoad returns the record that an index names by its number.
func (t *tx) mustLoad(n []byte) (*record, error) {
	at := binary.BigEndian.Uint64(n)
	r, err := t.load(at)
	if err == nil && r == nil {
		err = failed(fmt.Errorf("the record of task number %d is missing", at))
	}
	return r, err
}

// Get implements async.Store.
func (s *Store) Get(_ context.Context, id string) (task async.Task, err error) {
	err = s.view(func(t *tx) error {
		r, err := t.find(id)
		if err == nil {
			task = s.task(r)
		}
		return err
	})
	return task, err
}

// Body implements async.Store.
func (s *Store) Body(_ context.Context, id string) (body io.ReadCloser, err error) {
	err = s.view(func(t *tx) error {
		r, err := t.find(id)
		if err == nil {
			body, err = t.openPart(r.Number, ofRequest, r.Body)
		}
		return err
	})
	return body, err
}

// Result implements async.Store.
func (s *Store) Result(_ context.Context, id string) (answer *async.Answer, err error) {
	err = s.view(func(t *tx) error {
		r, err := t.find(id)
		switch {
		case err != nil:
			return err
		case r.Status == 0:
			return async.ErrNoResult
		}
		body, err := t.openPart(r.Number, ofAnswer, r.Result)
		if err == nil {
			answer = &async.Answer{Status: r.Status, Header: r.Header, Body: body, Size: r.Result.Size}
		}
		return err
	})
	return answer, err
}

// Claim implements async.Store.
func (s *Store) Claim(ctx context.Context, owner, queue string, n int) (tasks []async.Task, err error) {
	err = s.update(ctx, func(t *tx) error {
		tasks = nil
		if _, err := t.promote(queue); err != nil {
			return err
		}
		for len(tasks) < n {
			r, err := t.next(queue)
			if err != nil || r == nil {
				return err
			}
			if r.Expires > 0 && r.Expires <= t.now {
				if err := t.expire(r); err != nil {
					return err
				}
				continue
			}
			if err := t.begin(r, owner); err != nil {
				return err
			}
			tasks = append(tasks, s.task(r))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return tasks, nil
}

// next returns the oldest task of a queue that can begin, or nil.
func (t *tx) next(queue string) (*record, error) {
	c, err := t.countsOf(queue)
	if err != nil {
		return nil, err
	}
	oldest, first := uint64(math.MaxUint64), []byte(nil)
	for exclusive := range c.Ready {
		if k, v := t.nextOf(queue, exclusive); k != nil {
			if place := binary.BigEndian.Uint64(k[len(k)-8:]); place < oldest {
				oldest, first = place, v
			}
		}
	}
	if first == nil {
		return nil, nil
	}
	return t.mustLoad(first)
}

// nextOf returns the first of those with an exclusive name, or nil if one of them
// runs.
func (t *tx) nextOf(queue, exclusive string) (key, n []byte) {
	if t.isHeld(exclusive) {
		return nil, nil
	}
	prefix := readyPrefix(queue, exclusive)
	k, v := t.Bucket(readyBucket).Cursor().Seek(prefix)
	if !bytes.HasPrefix(k, prefix) {
		return nil, nil
	}
	return k, v
}

func (t *tx) isHeld(exclusive string) bool {
	return exclusive != "" && t.Bucket(exclusiveBucket).Get(appendString(nil, exclusive)) != nil
}

// begin begins an attempt of r.
func (t *tx) begin(r *record, owner string) error {
	if err := t.unschedule(r); err != nil {
		return err
	}
	if err := t.forgetExpiry(r); err != nil {
		return err
	}
	if err := t.setState(r, async.Running); err != nil {
		return err
	}
	r.Attempt++
	r.Owner, r.Boot, r.Started = owner, t.store.boot, t.now
	if err := t.put(runningBucket, number(r.Number), nil); err != nil {
		return err
	}
	if r.Exclusive != "" {
		if err := t.put(exclusiveBucket, appendString(nil, r.Exclusive), number(r.Number)); err != nil {
			return err
		}
	}
	id, attempt := t.store.id(r.Number, r.Random), r.Attempt
	t.then = append(t.then, func() { t.store.claimed(id, attempt, owner) })
	return t.changed(r)
}

// underWay returns the record whose attempt is under way here, or ErrStale.
func (t *tx) underWay(id string, attempt int) (*record, error) {
	r, err := t.find(id)
	if err != nil {
		return nil, err
	}
	if r.State != async.Running || r.Attempt != attempt || r.Boot != t.store.boot {
		return nil, async.ErrStale
	}
	return r, nil
}

// Settle implements async.Store.
func (s *Store) Settle(ctx context.Context, id string, attempt int, o async.Outcome) (task async.Task, err error) {
	var answer *received
	if o.Answer != nil && o.State.Final() {
		if answer, err = s.receive(o.Answer.Body); err != nil {
			return async.Task{}, err
		}
	}
	used := false
	err = s.update(ctx, func(t *tx) error {
		used = false
		r, err := t.underWay(id, attempt)
		if err != nil {
			return err
		}
		if err := t.settle(r, o, answer); err != nil {
			return err
		}
		used = true
		task = s.task(r)
		return nil
	})
	if _, doubtful := errors.AsType[*brokenError](err); !doubtful && (err != nil || !used) {
		s.discard(answer)
	}
	if err != nil {
		return async.Task{}, err
	}
	return task, nil
}

// settle ends the attempt of r.
func (t *tx) settle(r *record, o async.Outcome, answer *received) error {
	if err := t.stop(r); err != nil {
		return err
	}
	if !o.Uncounted {
		r.Counted++
	}
	if o.State == async.Pending && !r.Cancelling {
		return t.again(r, o.Delay, o.Reason)
	}
	state := o.State
	if state == async.Pending {
		state = async.Cancelled
	}
	if answer != nil {
		r.Status, r.Header, r.Result = o.Answer.Status, o.Answer.Header, answer.part
		if err := t.putPart(r.Number, ofAnswer, answer); err != nil {
			return err
		}
	}
	return t.finish(r, state, o.Reason)
}

// Cancel implements async.Store.
func (s *Store) Cancel(ctx context.Context, id string) (task async.Task, err error) {
	err = s.update(ctx, func(t *tx) error {
		r, err := t.find(id)
		if err != nil {
			return err
		}
		task = s.task(r)
		switch {
		case r.State.Final():
			return async.ErrFinished
		case r.State == async.Pending:
			err = t.finish(r, async.Cancelled, "")
		case !r.Cancelling:
			r.Cancelling = true
			t.then = append(t.then, func() { s.cancelling(id) })
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
	err = s.update(ctx, func(t *tx) error {
		r, err := t.find(id)
		switch {
		case err != nil:
			return err
		case r.State == async.Done:
			return async.ErrFinished
		case !r.State.Final():
			return async.ErrUnfinished
		}
		if err := t.forgetAnswer(r); err != nil {
			return err
		}
		if err := t.forgetEnd(r); err != nil {
			return err
		}
		if err := t.setState(r, async.Pending); err != nil {
			return err
		}
		if r.Place, err = t.Bucket(tasksBucket).NextSequence(); err != nil {
			return failed(err)
		}
		r.Counted, r.Reason, r.Ended, r.Due = 0, "", 0, t.now
		if err := t.enqueue(r); err != nil {
			return err
		}
		if err := t.changed(r); err != nil {
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

// Purge implements async.Store.
func (s *Store) Purge(ctx context.Context, id string) error {
	return s.update(ctx, func(t *tx) error {
		r, err := t.find(id)
		switch {
		case err != nil:
			return err
		case !r.State.Final():
			return async.ErrUnfinished
		}
		return t.erase(r)
	})
}
