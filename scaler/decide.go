package scaler

import (
	"context"
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
		if l.current() == nil || l.ctx.Err() != nil {
			return time.Time{}
		}
		var next recheck
		l.expire(now, &next)
		advice := l.advise(now)
		next.by(advice.Recheck)
		if l.follow(advice, now, &next) && l.reserver.Watch(l.mark(advice)) {
			l.settle()
			return next.at
		}
		// Demand came in between: everything anew.
		now = time.Now()
	}
	// Demand that comes faster than decisions are made, or a policy whose
	// mark contradicts its target: the lock is not kept for that.
	l.settle()
	return now.Add(decidePause)
}

const (
	decideTries = 4
	decidePause = time.Millisecond
)

// mark is the demand above which to decide anew.
func (l *Loop) mark(a Advice) int {
	if l.target == 0 && l.suspended == nil {
		return 0
	}
	return a.Mark
}

// expire deals with what time alone has brought about.
func (l *Loop) expire(now time.Time, next *recheck) {
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
				l.log.Warn("instance ejected", zap.String("instance", i.ID), zap.String("address", i.Address),
					zap.Duration("probed_again_in", pause))
				l.changed(i)
				l.startProbe(i, pause)
				l.expireStart(i, now, next)
			case l.failures > 0 && r == l.current():
				if proven := i.readySince.Add(provenAfter); now.Before(proven) {
					next.by(proven)
				} else {
					l.failures, l.lastFailure = 0, nil
				}
			}
		}
		switch {
		case r.ordering || r.desired <= r.existing():
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

// expireStart gives up on an instance that does not become ready in time.
func (l *Loop) expireStart(i *instance, now time.Time, next *recheck) {
	deadline := i.unreadyFrom.Add(l.settings.StartTimeout)
	if i.doomed {
		return
	}
	if now.Before(deadline) {
		next.by(deadline)
		return
	}
	f := &Failure{Reason: ReasonTimeout, Short: "not ready within " + l.settings.StartTimeout.String(), Err: i.lastProbe}
	i.doomed = true
	i.stopProbe()
	l.drain(i, now)
	if i.revision == l.current() {
		l.startFailed(f, now)
	}
}

// advise asks the policy, within the limits that operators and failures set.
func (l *Loop) advise(now time.Time) Advice {
	stats := l.reserver.Stats()
	in := Inputs{
		Now: now, Min: l.settings.Min, Max: l.settings.Max, Concurrency: l.settings.Concurrency,
		Demand: stats.Demand, Waiting: stats.Waiting, IdleSince: stats.IdleSince, IdleTimeout: l.settings.IdleTimeout,
	}
	if l.retired {
		in.Min = 0
	}
	for _, r := range l.revisions {
		alive, _ := r.count()
		in.Running += max(alive, r.desired)
	}
	pause := now.Before(l.backoffUntil)
	if !pause && l.reserver.Knocked() {
		l.nudged = true
	}
	if in.Demand > 0 || l.nudged {
		l.asleep = false
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
		return Advice{Reason: "suspended", Mark: NoMark}
	case l.asleep:
		return Advice{Reason: "put to sleep by an operator"}
	case l.retired && in.Demand == 0:
		return Advice{Reason: "no longer configured"}
	}
	a := l.settings.Policy.Target(in)
	a.Target = max(in.Min, min(a.Target, in.Max))
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

// count returns how many instances of r serve or will serve, and how many of
// them are not ready yet for the first time.
func (r *revision) count() (alive, starting int) {
	for _, i := range r.instances {
		if i.stopping || i.draining {
			continue
		}
		alive++
		if i.slots == nil {
			starting++
		}
	}
	return alive, starting
}

// withSlots returns the instances of r that take requests or were ejected.
func (r *revision) withSlots() []*reserver.Instance {
	var all []*reserver.Instance
	for _, i := range r.instances {
		if !i.stopping && !i.draining && i.slots != nil {
			all = append(all, i.slots)
		}
	}
	return all
}

// follow carries the advice out as far as it can be now. It returns false if
// the advice is void, because a request came in between.
func (l *Loop) follow(a Advice, now time.Time, next *recheck) bool {
	if !l.shrink(a, now) {
		return false
	}
	l.setTarget(a, now)
	if l.target == 0 && len(l.history) > 0 && a.Idle {
		l.history = nil
	}
	want := l.grow(now, next)
	for k, r := range l.revisions {
		starts := 0
		if k == len(l.revisions)-1 {
			starts = want
		}
		l.order(r, starts, now, next)
	}
	l.returnPlaces()
	l.closeOld()
	return true
}

// shrink cordons what is above the target: never-ready instances first, then
// the least loaded. It returns false if a request voided the advice.
func (l *Loop) shrink(a Advice, now time.Time) bool {
	cur := l.current()
	guard := time.Time{}
	if a.Idle {
		guard = l.reserver.Stats().IdleSince
		if l.reserver.Stats().Demand > 0 {
			return false
		}
	}
	// Local platforms alone own what they run; of others, a service that is
	// no longer configured leaves everything as it is.
	leave := l.retired && !cur.traits.Local && l.suspended == nil && !l.asleep

	ready := 0
	for _, i := range cur.instances {
		if i.state() == InstanceReady {
			ready++
		}
	}
	for _, r := range l.revisions {
		keep := a.Target
		if r != cur {
			// An earlier revision serves for what the current one cannot yet.
			keep = max(0, a.Target-ready)
		}
		if leave {
			continue
		}
		alive, starting := r.count()
		surplus := alive - keep
		if surplus <= 0 {
			continue
		}
		for _, i := range r.instances {
			if surplus > 0 && starting > 0 && i.slots == nil && !i.draining && !i.stopping {
				l.drain(i, now)
				surplus--
			}
		}
		if surplus <= 0 {
			continue
		}
		chosen := l.reserver.CordonLeastLoaded(surplus, r.withSlots(), guard)
		if len(chosen) == 0 && !guard.IsZero() {
			return false
		}
		for _, c := range chosen {
			l.drain(r.instances[c.ID], now)
		}
		if !guard.IsZero() {
			guard = l.reserver.Stats().IdleSince
		}
	}
	return true
}

// setTarget records a decision if the target changes.
func (l *Loop) setTarget(a Advice, now time.Time) {
	if a.Target == l.target {
		return
	}
	stats := l.reserver.Stats()
	d := Decision{Time: now, From: l.target, To: a.Target, Reason: a.Reason, Inputs: map[string]any{
		"in_use": stats.InUse, "waiting": stats.Waiting, "demand": stats.Demand, "ready": stats.Open,
		"min": l.settings.Min, "max": l.settings.Max, "concurrency": l.settings.Concurrency,
		"failures": l.failures,
	}}
	if stats.Demand == 0 {
		d.Inputs["idle_ms"] = now.Sub(stats.IdleSince).Milliseconds()
	}
	if len(l.decisions) == decisionsKept {
		copy(l.decisions, l.decisions[1:])
		l.decisions = l.decisions[:decisionsKept-1]
	}
	l.decisions = append(l.decisions, d)
	if stats.Open == 0 && l.target == 0 {
		l.coldFrom = now
		if !stats.OldestWait.IsZero() {
			l.coldFrom = stats.OldestWait
		}
	}
	if a.Target == 0 {
		l.coldFrom = time.Time{}
	}
	l.target = a.Target
	l.log.Info("decided", zap.Int("from", d.From), zap.Int("to", d.To), zap.String("reason", d.Reason),
		zap.Int("demand", stats.Demand), zap.Int("waiting", stats.Waiting))
	l.observer.Decided(d)
}

// grow takes back what drains needlessly, and returns how many starts to
// order now, as far as pauses and the budget allow.
func (l *Loop) grow(now time.Time, next *recheck) int {
	cur := l.current()
	alive, starting := cur.count()
	for _, i := range cur.instances {
		if alive < l.target && i.draining && !i.doomed && !i.stopping && i.slots != nil {
			i.draining = false
			if !i.withdrawn {
				i.slots.Uncordon()
			}
			l.changed(i)
			alive++
		}
	}
	coming := max(0, cur.desired-cur.existing())
	missing := l.target - alive - coming
	if cur.ordering {
		// Places are for starts that are ordered: they stay until it is known
		// what came of the order.
		return 0
	}
	if missing <= 0 {
		l.budget.claim(l, 0, false, time.Time{})
		return 0
	}
	if now.Before(l.backoffUntil) {
		next.by(l.backoffUntil)
		l.budget.claim(l, 0, false, time.Time{})
		return 0
	}
	if l.failures > 0 {
		// One start shows whether it works again.
		missing = min(missing, max(0, 1-starting-coming))
	}
	stats := l.reserver.Stats()
	since := stats.OldestWait
	if since.IsZero() {
		since = now
	}
	free := int(l.places.Load())
	if cur.traits.Local {
		free -= starting
	}
	free = max(free, 0)
	if free < missing {
		free += l.budget.claim(l, missing-free, stats.Open == 0 && starting == 0, since)
	}
	return min(missing, free)
}

// existing is how many instances the platform has that are not stopping.
func (r *revision) existing() int {
	n := 0
	for _, i := range r.instances {
		if !i.stopping {
			n++
		}
	}
	return n
}

// order gives the platform the order that is due, if there is one.
func (l *Loop) order(r *revision, starts int, now time.Time, next *recheck) {
	if r.ordering {
		return
	}
	var o Order
	for _, i := range r.instances {
		switch {
		case i.stopping:
			continue
		case !i.draining:
			o.Instances++
			continue
		}
		switch empty := i.slots == nil || i.slots.Stats().InUse == 0; {
		case empty || !now.Before(i.drainUntil):
			o.Stop = append(o.Stop, i.ID)
		default:
			o.Instances++
			next.by(i.drainUntil)
		}
	}
	// What the platform is about to make stays wanted, as far as the target
	// goes.
	coming := max(0, r.desired-r.existing())
	if r == l.current() {
		alive, _ := r.count()
		coming = max(0, min(coming, l.target-alive))
	} else {
		coming = 0
	}
	if l.retired && !r.traits.Local && len(o.Stop) == 0 && starts == 0 {
		return
	}
	o.Instances += coming + starts
	o.StopTimeout = l.settings.StopTimeout
	if len(o.Stop) == 0 && o.Instances == r.desired {
		return
	}
	if now.Before(r.retryAt) {
		next.by(r.retryAt)
		return
	}
	for _, id := range o.Stop {
		i := r.instances[id]
		i.stopping, i.told = true, true
		i.stopProbe()
		l.changed(i)
	}
	r.ordering = true
	r.ordered = o.Instances
	l.background(func() { l.carryOut(r, o, starts) })
}

// carryOut gives an order and takes note of what came of it.
func (l *Loop) carryOut(r *revision, o Order, starts int) {
	ctx, cancel := context.WithTimeout(l.ctx, orderTimeout)
	defer cancel()
	err := r.scaler.Scale(ctx, o)
	now := time.Now()
	l.mu.Lock()
	r.ordering = false
	if err == nil {
		r.retries, r.retryAt = 0, time.Time{}
	} else {
		l.refused(r, o, starts, AsFailure(err), now)
	}
	l.mu.Unlock()
	l.Poke()
}

// orderTimeout bounds one call of a platform.
const orderTimeout = 30 * time.Second

// refused deals with an order that failed.
func (l *Loop) refused(r *revision, o Order, starts int, f *Failure, now time.Time) {
	if l.ctx.Err() != nil {
		return
	}
	r.ordered = r.desired
	for _, id := range o.Stop {
		// They may still run: they are told again, and get nothing until
		// then.
		if i := r.instances[id]; i != nil && i.Phase != PhaseStopping {
			i.stopping, i.told = false, false
			i.draining, i.doomed = true, true
		}
	}
	if starts > 0 {
		l.startFailed(f, now)
	} else {
		l.log.Warn("order failed", zap.String("revision", r.id), zap.Int("instances", o.Instances),
			zap.Strings("stop", o.Stop), zap.Error(f))
		l.lastFailure = f
	}
	if starts == 0 || len(o.Stop) > 0 {
		r.retries++
		r.retryAt = now.Add(backoff(r.retries))
	}
}

// returnPlaces gives back the places of the start budget that are no longer
// needed: starts that are accepted, or for local platforms ready or failed.
func (l *Loop) returnPlaces() {
	need := 0
	for _, r := range l.revisions {
		if r.ordering {
			// Not known yet.
			return
		}
		if r.traits.Local {
			_, starting := r.count()
			need += starting
		}
	}
	for {
		have := l.places.Load()
		if have <= int64(need) {
			return
		}
		if l.places.CompareAndSwap(have, int64(need)) {
			l.budget.giveBack(int(have) - need)
			return
		}
	}
}

// closeOld closes the backends of earlier revisions that have nothing left,
// and all of them when a service that nobody configures any more is done.
func (l *Loop) closeOld() {
	kept := l.revisions[:0:0]
	cur := l.current()
	for _, r := range l.revisions {
		if r != cur && len(r.instances) == 0 && !r.ordering && r.desired == 0 {
			l.log.Debug("revision closed", zap.String("revision", r.id))
			l.background(func() { l.close(r) })
			continue
		}
		kept = append(kept, r)
	}
	l.revisions = kept
	if l.retired && l.onRetired != nil && l.reserver.Stats().InUse+l.reserver.Stats().Waiting == 0 && l.target == 0 {
		for _, r := range l.revisions {
			if r.ordering || r.traits.Local && len(r.instances) > 0 {
				return
			}
		}
		done := l.onRetired
		l.onRetired = nil
		// Close waits for what the loop has started, this goroutine too.
		go func() {
			_ = l.Close(context.Background())
			done()
		}()
	}
}

func (l *Loop) close(r *revision) {
	if err := r.scaler.Close(l.ctx, l.settings.StopTimeout); err != nil {
		l.log.Warn("closing a revision's backend", zap.String("revision", r.id), zap.Error(err))
	}
}

// settle publishes the state.
func (l *Loop) settle() {
	s := l.stateNow()
	if s == l.state {
		return
	}
	from := l.state
	l.state = s
	l.log.Info("state changed", zap.String("from", string(from)), zap.String("to", string(s)))
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
