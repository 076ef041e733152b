package scaler

import (
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

// recheck collects the earliest time at which something has to be looked at
// again.
type recheck struct{ at time.Time }

func (r *recheck) by(t time.Time) {
	if !t.IsZero() && (r.at.IsZero() || t.Before(r.at)) {
		r.at = t
	}
}

// decide looks at everything, sets the target, and does what is missing. It
// returns when to look again if nothing happens before; zero is never.
func (l *Loop) decide(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range decideTries {
		if l.closing() {
			return time.Time{}
		}
		var next recheck
		if l.current() == nil {
			l.finish(now, &next)
			return next.at
		}
		l.expire(now, &next)
		advice, stats := l.advise(now, &next)
		next.by(advice.Recheck)
		if l.follow(advice, stats, now, &next) && l.reserver.Watch(advice.Mark) {
			l.settle()
			return next.at
		}
		// Demand came in between: everything anew.
		now = time.Now()
	}
	// Demand that comes faster than decisions are made: the lock is not kept
	// for that.
	l.settle()
	return now.Add(decidePause)
}

const (
	decideTries = 4
	decidePause = time.Millisecond
)

// expire deals with what time alone has brought about.
func (l *Loop) expire(now time.Time, next *recheck) {
	l.blame(now)
	l.refuse()
	if l.refusal != nil {
		next.by(l.refusal.Until)
	}
	for _, r := range l.revisions {
		for _, i := range r.instances {
			switch {
			case i.stopping, i.draining:
			case i.slots == nil || i.withdrawn || !i.unreadyFrom.IsZero():
				l.expireStart(i, now, next)
			case i.slots.Stats().Ejected:
				i.unreadyFrom = now
				pause := i.slots.Pause()
				l.log().Warn("instance ejected", zap.String("instance", i.ID), zap.String("address", i.Address),
					zap.Duration("probed_again_in", pause))
				l.changed(i)
				l.startProbe(i, pause)
				l.expireStart(i, now, next)
			case i.slots.Stats().Questioned && i.probe == nil:
				l.vouch(i)
			case l.lastFailure != nil && r == l.current() && i.readySince.After(l.lastFailure.at):
				// A start has succeeded after the failure. One that succeeded
				// long before proves nothing about starts now.
				if proven := i.readySince.Add(provenAfter); now.Before(proven) {
					next.by(proven)
				} else {
					l.failures, l.hopeless, l.lastFailure = 0, false, nil
				}
			}
		}
		switch {
		case r != l.current() || r.ordering || r.desired <= r.existing():
			r.missing = time.Time{}
		case r.missing.IsZero():
			r.missing = now
		case !now.Before(r.missing.Add(l.settings.StartTimeout)):
			r.missing = now
			l.startFailed(&Failure{Reason: ReasonTimeout, Short: "no instance appeared within " + l.settings.StartTimeout.String()}, now)
		}
		if !r.missing.IsZero() {
			next.by(r.missing.Add(l.settings.StartTimeout))
		}
	}
}

// adoptTimeout is how long an adopted instance may take to answer, beyond the
// time of one probe. Requests wait for it rather than for a start.
const adoptTimeout = 5 * time.Second

// readyBy returns when an instance that is not ready is given up.
func (l *Loop) readyBy(i *instance) time.Time {
	limit := l.settings.StartTimeout
	if i.Adopted && i.slots == nil {
		// What was ready and does not answer soon hangs. What was starting has
		// what is left of its time.
		soon := adoptTimeout + l.settings.Check.timeout()
		if left := i.Since.Add(limit).Sub(i.unreadyFrom); !i.WasReady && left > soon {
			soon = left
		}
		limit = min(limit, soon)
	}
	return i.unreadyFrom.Add(limit)
}

// expireStart gives up on an instance that does not become ready in time.
func (l *Loop) expireStart(i *instance, now time.Time, next *recheck) {
	if i.doomed {
		return
	}
	if deadline := l.readyBy(i); now.Before(deadline) {
		next.by(deadline)
		return
	}
	if i.Adopted && i.slots == nil {
		l.log().Warn("an adopted instance does not answer: it is stopped", zap.String("instance", i.ID),
			zap.String("address", i.Address), zap.Error(i.lastProbe))
		i.doomed = true
		i.stopProbe()
		l.drain(i, now)
		return
	}
	f := &Failure{Reason: ReasonTimeout, Short: "not ready within " + l.settings.StartTimeout.String(), Err: i.lastProbe}
	if d := i.Delay; d != nil {
		f = &Failure{Reason: d.Reason, ForGood: d.ForGood, Short: f.Short + ": " + d.Short, Detail: d.Detail, Err: d.Err}
	}
	i.doomed = true
	i.stopProbe()
	l.drain(i, now)
	if i.revision == l.current() {
		l.startFailed(f, now)
	}
}

// advise asks the policy, within the limits that operators and failures set.
// It also returns the counters by which that was decided.
func (l *Loop) advise(now time.Time, next *recheck) (Advice, reserver.Stats) {
	stats := l.reserver.Stats()
	in := Inputs{
		Now: now, Min: l.settings.Min, Max: l.settings.Max, Concurrency: l.settings.Concurrency,
		Demand: stats.Demand, Waiting: stats.Waiting + stats.Guests, IdleSince: stats.IdleSince, IdleTimeout: l.settings.IdleTimeout,
	}
	if l.retired {
		in.Min = 0
	}
	for _, r := range l.revisions {
		if alive, _ := r.count(); r == l.current() && !r.ordering {
			// Where somebody else asked for fewer, those that still run are
			// on their way out.
			in.Running += r.desired
		} else {
			in.Running += max(alive, r.desired)
		}
	}
	switch {
	case now.Before(l.backoffUntil):
		// Who was refused meanwhile is the reason for the next try.
		next.by(l.backoffUntil)
	case l.reserver.Knocked() && l.exiting == nil && l.suspended == nil && !l.retired:
		l.nudged = true
		// A refused request is demand that came and went: without this, the
		// start that it causes would be stopped as idle.
		l.reserver.Touch()
		stats.IdleSince = l.reserver.Stats().IdleSince
		in.IdleSince = stats.IdleSince
	}
	if in.Demand > 0 || l.nudged {
		l.asleep = false
	}
	if l.starting() && l.cold.nudged {
		// A start that takes longer than idle_timeout would never end.
		in.IdleSince = now
	}
	if l.nudged && in.Running == 0 {
		in.Demand = max(in.Demand, 1)
	} else {
		l.nudged = false
	}
	l.remember(now, in.Running)
	in.History = l.history

	switch {
	case l.suspended != nil:
		return Advice{Reason: "suspended", Mark: NoMark}, stats
	case l.asleep:
		return Advice{Reason: "put to sleep by an operator"}, stats
	case l.retired && in.Demand == 0:
		return Advice{Reason: "no longer configured"}, stats
	}
	a := l.settings.Policy.Target(in)
	a.Target = max(in.Min, min(a.Target, in.Max))
	a = l.current().held(a)
	// The policy has seen this demand: only more than that is news to it.
	a.Mark = max(a.Mark, stats.Demand)
	if a.Target == 0 {
		a.Mark = stats.Demand
	}
	if l.nudged && stats.Demand == 0 {
		a.Reason = "asked for by an operator, or by a request that could not wait"
	}
	return a, stats
}

// held returns the advice as far as somebody else leaves it to us.
func (r *revision) held(a Advice) Advice {
	h, n := r.hold, r.desired
	if h == nil || n == 0 {
		return a
	}
	switch {
	case a.Target == 0 && !h.None:
		return a
	case a.Target > n && h.More, a.Target < n && (h.Fewer || a.Target == 0):
	default:
		return a
	}
	a.Target, a.Idle, a.Reason = n, false, "the platform is busy with a change of its own"
	if h.Failure != nil {
		a.Reason = h.Failure.Short
	}
	return a
}

// remember adds the present to the history and forgets what is too old.
// Spans shorter than a part of the window are put together.
func (l *Loop) remember(now time.Time, running int) {
	peak := l.reserver.TakePeak()
	if running == 0 && peak == 0 {
		l.history = nil
		return
	}
	window := l.settings.Policy.Window()
	for len(l.history) > 0 && now.Sub(l.history[0].At) >= window {
		l.history = l.history[1:]
	}
	part := window / historyParts
	if n := len(l.history); n > 1 && l.history[n-1].At.Sub(l.history[n-2].At) < part && l.history[n-1].Instances == 0 {
		last := &l.history[n-1]
		last.At, last.Demand = now, max(last.Demand, peak)
		return
	}
	l.history = append(l.history, Sample{At: now, Demand: peak})
}

// settle publishes the state.
func (l *Loop) settle() {
	s := l.stateNow()
	if s == l.state {
		return
	}
	from := l.state
	l.state = s
	l.log().Info("state changed", zap.String("from", string(from)), zap.String("to", string(s)))
	l.observer.StateChanged(from, s)
}

func (l *Loop) stateNow() State {
	switch {
	case l.suspended != nil:
		return Suspended
	case l.failing():
		return Failing
	case l.reserver.Stats().Open > 0:
		return Awake
	case l.target > 0:
		return Waking
	}
	return Asleep
}
