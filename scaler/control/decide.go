package control

import (
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
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
		if l.follows() {
			return l.decideFollowing(now)
		}
		l.expire(now, &next)
		advice, stats := l.advise(now, &next)
		next.by(advice.Recheck)
		if l.follow(advice, stats, now, &next) && l.watch(advice.Mark) {
			l.holdNeeds(now, &next)
			l.refuse(now)
			l.settle()
			l.show()
			l.publish(now)
			l.tellDecided()
			return next.at
		}
		// Demand came in between: everything anew.
		now = time.Now()
	}
	// Demand that comes faster than decisions are made: the lock is not kept
	// for that.
	l.settle()
	l.show()
	l.publish(now)
	l.tellDecided()
	return now.Add(decidePause)
}

const (
	decideTries = 4
	decidePause = time.Millisecond
)

// expire deals with what time alone has brought about.
func (l *Loop) expire(now time.Time, next *recheck) {
	l.countFailures(now)
	l.refuse(now)
	for _, s := range l.takeCalls() {
		for _, r := range l.revisions {
			if i := r.instances[s.ID]; i != nil && i.slots == s {
				l.attend(i, now)
			}
		}
	}
	if l.refusal != nil {
		next.by(l.refusal.Until)
	}
	l.renew(now, next)
	for _, r := range l.revisions {
		for _, i := range r.instances {
			switch {
			case i.stage.leaving():
			case i.stage.coming() || !i.unreadyFrom.IsZero():
				l.expireStart(i, now, next)
			case l.lastFailure != nil && r == l.current() && i.readySince.After(l.lastFailure.at):
				// A start has succeeded after the failure. One that succeeded
				// long before proves nothing about starts now.
				if proven := i.readySince.Add(ProvenAfter); now.Before(proven) {
					next.by(proven)
				} else {
					l.failures, l.permanentFailure, l.lastFailure = 0, false, nil
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
			l.startFailed(&scaler.Failure{Reason: scaler.ReasonTimeout, Short: "no instance appeared within " + l.settings.StartTimeout.String()}, now)
		}
		if !r.missing.IsZero() {
			next.by(r.missing.Add(l.settings.StartTimeout))
		}
	}
}

// attend deals with what the reserver has to tell of a ready instance: that it
// is ejected, or is to be vouched for. One that is not ready is looked at again
// when it is.
func (l *Loop) attend(i *instance, now time.Time) {
	if i.stage != ready || !i.unreadyFrom.IsZero() {
		return
	}
	switch s := i.slots.Stats(); {
	case s.Ejected:
		i.unreadyFrom = now
		pause := i.slots.Pause()
		l.log().Warn("instance ejected", slog.String("instance", i.ID), slog.String("address", i.Address),
			slog.String("reason", ejectedFor(i.slots)), errorAttr("probe", i.lastProbe), slog.Duration("probed_again_in", pause))
		l.changed(i)
		l.startProbe(i, pause)
	case s.Spent:
		l.replace(i, now)
		i.drainUntil = now.Add(unhurried)
	case s.VerifyRequested && i.probe == nil:
		l.vouch(i)
	}
}

// unhurried is the time that requests have on an instance which goes only because
// it has had as many as it may have.
const unhurried = 100 * 365 * 24 * time.Hour

// adoptTimeout is how long an adopted instance may take to answer, beyond the
// time of one probe. Requests wait for it rather than for a start.
const adoptTimeout = 5 * time.Second

// readyBy returns when an instance that is not ready is given up.
func (l *Loop) readyBy(i *instance) time.Time {
	limit := l.settings.StartTimeout
	if i.Adopted && i.stage == starting {
		// What was ready and does not answer soon hangs. What was starting has
		// what is left of its time.
		soon := adoptTimeout + l.settings.Check.timeout()
		if left := i.Since.Add(limit).Sub(i.unreadyFrom); !i.WasReady && left > soon {
			soon = left
		}
		limit = min(limit, soon)
	}
	if i.unreachable() {
		// It was ready: it comes back in a moment, or not at all. The time
		// counts from the first probe after it was ejected.
		limit = min(limit, i.slots.Pause()+adoptTimeout+l.settings.Check.timeout())
	}
	return i.unreadyFrom.Add(limit)
}

// expireStart gives up on an instance that does not become ready in time.
func (l *Loop) expireStart(i *instance, now time.Time, next *recheck) {
	if deadline := l.readyBy(i); now.Before(deadline) {
		next.by(deadline)
		return
	}
	if i.Adopted && i.stage == starting {
		l.log().Warn("an adopted instance does not answer: it is stopped", slog.String("instance", i.ID),
			slog.String("address", i.Address), errorAttr("error", i.lastProbe))
		l.condemn(i, now)
		return
	}
	if i.unreachable() {
		l.replaceUnreachable(i, now)
		return
	}
	f := l.notReady(i, "within "+l.settings.StartTimeout.String())
	l.condemn(i, now)
	if i.revision == l.current() {
		l.startFailed(f, now)
	}
}

// advise asks the policy, within the limits that operators and failures set.
// It also returns the counters by which that was decided.
func (l *Loop) advise(now time.Time, next *recheck) (scaler.Advice, reserver.Stats) {
	stats := l.stats()
	in := l.demandInputs(now, stats)
	switch {
	case now.Before(l.backoffUntil):
		// A request that is refused meanwhile is the reason for the next try.
		next.by(l.backoffUntil)
	case l.reserver.TakeRefusedDemand() && l.exiting == nil && l.suspended == nil && !l.retired:
		l.startRequested = true
		// A refused request is demand that came and went: without this, the
		// start that it causes would be stopped as idle.
		l.reserver.ResetIdle()
		stats.IdleSince = l.stats().IdleSince
		in.IdleSince, in.Refused = stats.IdleSince, true
	}
	if woken := l.takeWoken(); in.Demand > 0 || l.startRequested || woken {
		l.asleep = false
	}
	if l.comingUp(stats) {
		// A start that takes longer than idle_timeout would never end.
		in.IdleSince, in.Running = now, max(in.Running, 1)
	}
	if l.startRequested && in.Running == 0 {
		in.Demand = max(in.Demand, 1)
	} else {
		l.startRequested = false
	}
	l.countIdle(now, stats)
	in.Peak = max(l.remember(now, in.Running, stats), in.Demand)
	past := l.recalled()
	l.measuredInputs(&in, past, stats)

	if l.suspended != nil || l.asleep || l.retired && in.Demand == 0 {
		l.alone()
	}
	switch {
	case l.suspended != nil:
		l.expectNothing(in)
		return scaler.Advice{Reason: "suspended", Mark: scaler.NoMark}, stats
	case l.asleep:
		l.expectNothing(in)
		return scaler.Advice{Reason: sleepReason}, stats
	case l.retired && in.Demand == 0:
		return scaler.Advice{Reason: "no longer configured"}, stats
	}
	a, memory := l.settings.Policy.Target(in, past.memory)
	if memory != nil || past.memory != nil {
		l.record().memory = memory
	}
	a.Target = max(in.Min, min(a.Target, in.Max))
	a = l.inSession(a, in, next)
	l.foresee(a, in)
	a = l.current().held(l.inCompany(a, l.company(a), stats))
	// The policy has seen this demand: only more than that is news to it.
	a.Mark = max(a.Mark, stats.Demand)
	if a.Target == 0 {
		a.Mark = stats.Demand
	}
	if l.startRequested && stats.Demand == 0 {
		a.Reason = "asked for by an operator, or by a request that could not wait"
	}
	return a, stats
}

// sleepReason is why a service that an operator has put to sleep has no
// instance.
const sleepReason = "put to sleep by an operator"

// demandInputs are the limits, the demand and the instances by which the policy
// decides. The lock is held.
func (l *Loop) demandInputs(now time.Time, stats reserver.Stats) scaler.Inputs {
	in := scaler.Inputs{
		Now: now, Min: l.settings.Min, Max: l.settings.Max, Concurrency: l.slotsEach(),
		Demand: stats.Demand, Waiting: stats.Waiting + stats.Visitors, IdleSince: stats.IdleSince, IdleTimeout: l.settings.IdleTimeout,
	}
	if l.retired {
		in.Min = 0
	}
	for _, r := range l.revisions {
		if alive, _ := r.count(); r == l.current() && !r.ordering {
			// If another program asked for fewer, the rest is on its way out.
			in.Running += r.desired
		} else {
			in.Running += max(alive, r.desired)
		}
	}
	if l.owed {
		in.Running = max(in.Running, 1)
	}
	return in
}

// measuredInputs adds what the loop remembers and has measured. The lock is
// held.
func (l *Loop) measuredInputs(in *scaler.Inputs, past history, stats reserver.Stats) {
	in.History = past.samples
	in.Target, in.Ready, in.OldestWait, in.Arrivals = l.target, stats.Open, stats.Oldest(), stats.Arrivals
	in.StartTime, in.ServiceTime = past.readyMean, l.ServiceTime()
	in.Started, in.StartingSince = l.neverReady()
	in.Starting = len(in.Started)
	in.Metric = l.meter.Load().last()
}

// held returns the advice as far as the hold of the platform allows it.
func (r *revision) held(a scaler.Advice) scaler.Advice {
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

// neverReady returns since when each of the instances starts that never were
// ready, and since when the oldest. The lock is held.
func (l *Loop) neverReady() (started []time.Time, oldest time.Time) {
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.stage != starting || i.Extra {
				continue
			}
			if started = append(started, i.Since); oldest.IsZero() || i.Since.Before(oldest) {
				oldest = i.Since
			}
		}
	}
	return started, oldest
}

// watch makes the reserver tell of demand above the mark, of which a part is
// elsewhere. It reports whether it is not above it already. The lock is held.
func (l *Loop) watch(mark int) bool {
	if elsewhere, _ := l.demandElsewhere(); mark != scaler.NoMark {
		mark = max(0, mark-elsewhere)
	}
	return l.reserver.Watch(mark)
}

// settle publishes the state.
func (l *Loop) settle() {
	s := l.stateNow()
	if s == l.state {
		return
	}
	from := l.state
	l.state = s
	l.observer.Observe(StateChange{From: from, To: s})
}

func (l *Loop) stateNow() State {
	switch {
	case l.suspended != nil:
		return Suspended
	case l.failing() || l.unmet != nil && l.reserver.Stats().Open == 0:
		return Failing
	case l.reserver.Stats().Open > 0:
		return Awake
	case l.account() != nil && l.account().Status.State != Suspended && l.account().Status.State != Awake:
		return l.account().Status.State
	case (l.target > 0 || l.follows() && l.stats().Demand > 0) && !(l.asleep && l.stats().Demand == 0):
		return Waking
	}
	return Asleep
}
