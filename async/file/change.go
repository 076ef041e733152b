package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/caddy-usher/usher/async"
)

// accept adds a task with a body.
func (t *tx) accept(n async.NewTask, body *received, random []byte) (*record, error) {
	seq, err := t.Bucket(tasksBucket).NextSequence()
	if err != nil {
		return nil, failed(err)
	}
	r := &record{
		Number: seq, Random: random, Place: seq,
		Queue: n.Queue, Request: n.Request, Client: n.Client, Group: n.Group, Exclusive: n.Exclusive,
		Key: n.Key, Callback: n.Callback, Keep: n.Keep,
		State: async.Pending, Body: body.part, Accepted: t.now, Due: t.now,
	}
	if err := t.putPart(seq, ofRequest, body); err != nil {
		return nil, err
	}
	if n.Key != "" {
		r.Print = fingerprint(n, body)
		if err := t.put(keysBucket, t.store.keyKey(n.Queue, n.Key), number(seq)); err != nil {
			return nil, err
		}
	}
	if n.Expires > 0 {
		r.Expires = after(t.now, n.Expires)
		if err := t.put(expiryBucket, timeAndNumber(r.Expires, seq), nil); err != nil {
			return nil, err
		}
	}
	if err := t.addState(r, 1); err != nil {
		return nil, err
	}
	if err := t.enqueue(r); err != nil {
		return nil, err
	}
	return r, t.changed(r)
}

func fingerprint(n async.NewTask, body *received) []byte {
	h := sha256.New()
	h.Write([]byte(n.Fingerprint))
	h.Write(body.sum[:])
	return h.Sum(nil)
}

// changed writes r, whose state is another one now.
func (t *tx) changed(r *record) error {
	t.changes = append(t.changes, async.Change{Queue: r.Queue, ID: t.store.id(r.Number, r.Random), State: r.State})
	return t.save(r)
}

// enqueue lets r, which is pending, wait: for its group, if another one of that is
// before it.
func (t *tx) enqueue(r *record) error {
	if r.Group != "" {
		key := t.store.groupKey(r)
		if err := t.put(groupsBucket, key, number(r.Number)); err != nil {
			return err
		}
		if first, _ := t.Bucket(groupsBucket).Cursor().Seek(t.store.groupPrefix(r)); !bytes.Equal(first, key) {
			r.Phase = behind
			return nil
		}
	}
	return t.schedule(r)
}

// schedule lets r, which is pending and the first of its group, begin when it is due.
func (t *tx) schedule(r *record) error {
	c, err := t.countsOf(r.Queue)
	if err != nil {
		return err
	}
	c.changed = true
	if r.Due > t.now {
		r.Phase = delayed
		c.Delayed++
		return t.put(delayedBucket, r.delayedKey(), number(r.Number))
	}
	r.Phase = ready
	c.addReady(r.Exclusive, 1)
	return t.put(readyBucket, r.readyKey(), number(r.Number))
}

// unschedule takes r, which is pending, out of what can begin. It stays in its group.
func (t *tx) unschedule(r *record) error {
	c, err := t.countsOf(r.Queue)
	if err != nil {
		return err
	}
	c.changed = true
	phase := r.Phase
	r.Phase = 0
	switch phase {
	case ready:
		c.addReady(r.Exclusive, -1)
		return t.remove(readyBucket, r.readyKey())
	case delayed:
		c.Delayed--
		return t.remove(delayedBucket, r.delayedKey())
	}
	return nil
}

// promote lets tasks of a queue begin whose time has come, a bounded number of them.
// It reports whether there may be more.
func (t *tx) promote(queue string) (more bool, err error) {
	const most = 1000
	c, err := t.countsOf(queue)
	if err != nil || c.Delayed == 0 {
		return false, err
	}
	prefix := appendString(nil, queue)
	for range most {
		k, v := t.Bucket(delayedBucket).Cursor().Seek(prefix)
		if !bytes.HasPrefix(k, prefix) || binary.BigEndian.Uint64(k[len(prefix):]) > t.now {
			return false, nil
		}
		r, err := t.mustLoad(v)
		if err != nil {
			return false, err
		}
		if err := t.unschedule(r); err != nil {
			return false, err
		}
		if err := t.schedule(r); err != nil {
			return false, err
		}
		if err := t.save(r); err != nil {
			return false, err
		}
	}
	return true, nil
}

// leaveGroup takes r, which has ended, out of its group. The next one follows.
func (t *tx) leaveGroup(r *record, wasFirst bool) error {
	if r.Group == "" {
		return nil
	}
	if err := t.remove(groupsBucket, t.store.groupKey(r)); err != nil || !wasFirst {
		return err
	}
	prefix := t.store.groupPrefix(r)
	k, v := t.Bucket(groupsBucket).Cursor().Seek(prefix)
	if !bytes.HasPrefix(k, prefix) {
		return nil
	}
	next, err := t.mustLoad(v)
	if err != nil {
		return err
	}
	if err := t.schedule(next); err != nil {
		return err
	}
	return t.save(next)
}

// addState counts r in its state, or with -1 no more.
func (t *tx) addState(r *record, n int) error {
	c, err := t.countsOf(r.Queue)
	if err != nil {
		return err
	}
	c.changed = true
	c.States[r.State] += n
	if n < 0 {
		return t.remove(statesBucket, r.stateKey())
	}
	return t.put(statesBucket, r.stateKey(), nil)
}

func (t *tx) setState(r *record, s async.State) error {
	if err := t.addState(r, -1); err != nil {
		return err
	}
	r.State = s
	return t.addState(r, 1)
}

// stop ends the attempt of r.
func (t *tx) stop(r *record) error {
	r.Owner, r.Boot = "", ""
	if err := t.remove(runningBucket, number(r.Number)); err != nil {
		return err
	}
	if r.Exclusive != "" {
		if err := t.remove(exclusiveBucket, appendString(nil, r.Exclusive)); err != nil {
			return err
		}
	}
	id := t.store.id(r.Number, r.Random)
	t.then = append(t.then, func() { t.store.disown(id) })
	return nil
}

// finish ends r, whose attempt has ended or which is pending.
func (t *tx) finish(r *record, state async.State, reason string) error {
	wasFirst := r.Phase != behind
	if r.State == async.Pending {
		if err := t.unschedule(r); err != nil {
			return err
		}
	}
	if err := t.forgetExpiry(r); err != nil {
		return err
	}
	if err := t.setState(r, state); err != nil {
		return err
	}
	r.Due, r.Ended, r.Reason, r.Cancelling = 0, t.now, reason, false
	if err := t.leaveGroup(r, wasFirst); err != nil {
		return err
	}
	if r.Keep > 0 {
		r.KeptUntil = after(t.now, r.Keep)
		if err := t.put(endsBucket, timeAndNumber(r.KeptUntil, r.Number), nil); err != nil {
			return err
		}
	}
	if err := t.changed(r); err != nil {
		return err
	}
	n, body, ok := async.CallbackOf(t.store.task(r))
	if !ok {
		return nil
	}
	_, err := t.accept(n, &received{part: part{Size: int64(len(body))}, inline: body}, newRandom())
	return err
}

// again makes r, whose attempt has ended, pending.
func (t *tx) again(r *record, delay time.Duration, reason string) error {
	if err := t.setState(r, async.Pending); err != nil {
		return err
	}
	r.Due, r.Reason = after(t.now, delay), reason
	if err := t.schedule(r); err != nil {
		return err
	}
	return t.changed(r)
}

func (t *tx) forgetExpiry(r *record) error {
	if r.Expires == 0 {
		return nil
	}
	key := timeAndNumber(r.Expires, r.Number)
	r.Expires = 0
	return t.remove(expiryBucket, key)
}

// erase removes r, which has ended, with all that belongs to it.
func (t *tx) erase(r *record) error {
	if err := t.forgetAnswer(r); err != nil {
		return err
	}
	if err := t.removePart(r.Number, ofRequest, r.Body); err != nil {
		return err
	}
	if r.Key != "" {
		if err := t.remove(keysBucket, t.store.keyKey(r.Queue, r.Key)); err != nil {
			return err
		}
	}
	if err := t.forgetEnd(r); err != nil {
		return err
	}
	if err := t.addState(r, -1); err != nil {
		return err
	}
	return t.remove(tasksBucket, number(r.Number))
}

func (t *tx) forgetAnswer(r *record) error {
	p := r.Result
	r.Status, r.Header, r.Result = 0, nil, part{}
	return t.removePart(r.Number, ofAnswer, p)
}

func (t *tx) forgetEnd(r *record) error {
	if r.KeptUntil == 0 {
		return nil
	}
	key := timeAndNumber(r.KeptUntil, r.Number)
	r.KeptUntil = 0
	return t.remove(endsBucket, key)
}
