package tasks

import (
	"time"

	"github.com/caddy-usher/usher/async"
)

// changed writes r, whose state is another one now.
func (t *tx) changed(r *record) error {
	t.changes = append(t.changes, async.Change{Queue: r.queue, ID: r.id, State: r.state})
	return t.save(r)
}

// save writes what changes in r.
func (t *tx) save(r *record) error {
	if err := t.secrets.sealRecord(r); err != nil {
		return err
	}
	t.queue(`UPDATE tasks SET place = $2, state = $3, phase = $4, attempt = $5, counted = $6, owner = $7, claim = $8, cancelling = $9, progress = $10,
		status = $11, result_size = $12, due = $13, started = $14, expires = $15, ended = $16, kept_until = $17, reason = $18, header = $19
		WHERE number = $1`,
		r.number, r.place, r.state, r.phase, r.attempt, r.counted, r.owner, r.claim, r.cancelling, r.progress,
		r.status, r.resultSize, r.due, r.started, r.expires, r.ended, r.keptUntil, r.sealedReason, r.sealedHeader)
	return nil
}

// begin begins an attempt of r.
func (t *tx) begin(r *record, owner, claim string) error {
	r.state, r.phase, r.expires = async.Running, 0, 0
	r.attempt++
	r.owner, r.claim, r.started, r.progress = owner, claim, t.now, -1
	if r.exclusive != "" {
		t.queue(`UPDATE exclusives SET holder = $2 WHERE name = $1`, r.exclusive, r.number)
	}
	return t.changed(r)
}

// settle ends the attempt of r.
func (t *tx) settle(r *record, o async.Outcome, answer *body) error {
	if r.exclusive != "" {
		t.queue(`UPDATE exclusives SET holder = NULL WHERE name = $1 AND holder = $2`, r.exclusive, r.number)
	}
	id, attempt := r.id, r.attempt
	t.then = append(t.then, func() { t.store.own.remove(id, attempt) })
	r.owner, r.claim, r.progress = "", "", -1
	if !o.Uncounted {
		r.counted++
	}
	if o.State == async.Pending && !r.cancelling {
		return t.again(r, o.Delay, o.Reason)
	}
	state := o.State
	if state == async.Pending {
		state = async.Cancelled
	}
	if answer != nil {
		r.status, r.header, r.resultSize = o.Answer.Status, o.Answer.Header, answer.size
		if err := t.putBody(r.number, ofAnswer, answer); err != nil {
			return err
		}
	}
	return t.finish(r, state, o.Reason)
}

// again makes r, whose attempt has ended, pending.
func (t *tx) again(r *record, delay time.Duration, reason string) error {
	r.state, r.due, r.reason, r.phase = async.Pending, after(t.now, delay), reason, ready
	if r.due > t.now {
		r.phase = delayed
	}
	return t.changed(r)
}

// finish ends r, whose attempt has ended or which is pending.
func (t *tx) finish(r *record, state async.State, reason string) error {
	r.state, r.phase, r.reason = state, 0, reason
	r.due, r.expires, r.ended, r.cancelling = 0, 0, t.now, false
	if r.keep > 0 {
		r.keptUntil = after(t.now, r.keep)
	}
	if err := t.changed(r); err != nil {
		return err
	}
	if r.group != nil {
		// The next one of the group follows.
		t.queue(`UPDATE tasks SET phase = CASE WHEN due > $3 THEN 2 ELSE 1 END WHERE state = 1 AND phase = 3 AND number =
			(SELECT number FROM tasks WHERE queue = $1 AND group_key = $2 AND state <= 2 ORDER BY place LIMIT 1)`, r.queue, *r.group, t.now)
	}
	n, text, ok := async.CallbackOf(t.store.task(r))
	if !ok {
		return nil
	}
	a, err := t.store.accepting(t.secrets, n, text)
	if err != nil {
		return err
	}
	return t.insert([]*acceptance{a})
}
