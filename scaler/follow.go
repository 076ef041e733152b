package scaler

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

// follow carries the advice out as far as it can be now. It returns false if
// the advice is void, because a request came in between.
func (l *Loop) follow(a Advice, stats reserver.Stats, now time.Time, next *recheck) bool {
	if !l.shrink(a, stats.IdleSince, now) {
		return false
	}
	l.setTarget(a, stats, now)
	if l.target == 0 && len(l.history) > 0 && a.Idle {
		l.history = nil
	}
	l.returnPlaces()
	want := l.grow(now, next)
	for k, r := range l.revisions {
		starts := 0
		if k == len(l.revisions)-1 {
			starts = want
		}
		l.order(r, starts, now, next)
	}
	l.closeOld()
	l.finish(now, next)
	return true
}

// shrink cordons what is above the target: what the platform or a probe does
// not call ready first, then the least loaded, unless the platform insists on
// an order. It returns false if a request voided the advice: one that came
// since the policy was asked, even if it has gone again.
func (l *Loop) shrink(a Advice, idleSince, now time.Time) bool {
	guard := time.Time{}
	if a.Idle {
		guard = idleSince
		if s := l.reserver.Stats(); s.Demand > 0 || !s.IdleSince.Equal(guard) {
			return false
		}
	}
	// An earlier revision serves for what the later ones cannot yet.
	serving := 0
	for k, r := range slices.Backward(l.revisions) {
		surplus := r.surplus(max(0, a.Target-serving))
		if l.overtaken(k) {
			surplus = max(surplus, len(r.unready()))
		}
		for _, i := range r.instances {
			if i.state() == InstanceReady {
				serving++
			}
		}
		// Local platforms alone own what they run; of others, a service that
		// is no longer configured leaves everything as it is.
		if l.retired && !r.traits.Local && l.suspended == nil && !l.asleep {
			continue
		}
		unready, ready := r.victims(surplus)
		for _, i := range unready {
			if surplus > 0 {
				l.drain(i, now)
				surplus--
			}
		}
		if surplus <= 0 {
			continue
		}
		chosen := l.reserver.CordonLeastLoaded(surplus, ready, guard)
		if len(chosen) == 0 && !guard.IsZero() {
			return false
		}
		for _, c := range chosen {
			l.drain(r.instances[c.ID], now)
		}
	}
	return true
}

// overtaken says whether what revision k starts is of no use: an earlier one
// that lives on is nearer to serving, and two later ones are nearer to what is
// wanted. Or reloads and restarts in a row would pile up starts.
func (l *Loop) overtaken(k int) bool {
	if k >= len(l.revisions)-2 || !l.revisions[k].traits.Local {
		return false
	}
	for _, r := range l.revisions[:k] {
		if alive, _ := r.count(); alive > 0 {
			return true
		}
	}
	return false
}

// setTarget records a decision, with the counters by which it was made, if the
// target changes.
func (l *Loop) setTarget(a Advice, stats reserver.Stats, now time.Time) {
	if a.Target == l.target {
		return
	}
	d := Decision{Time: now, From: l.target, To: a.Target, Reason: a.Reason, Inputs: map[string]any{
		"in_use": stats.InUse, "waiting": stats.Waiting, "guests": stats.Guests, "demand": stats.Demand, "ready": stats.Open,
		"min": l.settings.Min, "max": l.settings.Max, "concurrency": l.settings.Concurrency,
		"failures": l.failures,
	}}
	if stats.Demand == 0 {
		d.Inputs["idle_ms"] = now.Sub(stats.IdleSince).Milliseconds()
	}
	if stats.Open == 0 && l.target == 0 && (stats.Demand > 0 || l.nudged) {
		asked := now
		if t := stats.Oldest(); !t.IsZero() {
			asked = t
		}
		l.waking(&d, asked)
	}
	if a.Target == 0 {
		l.cold = nil
	}
	past := l.record()
	if len(past.decisions) == decisionsKept {
		copy(past.decisions, past.decisions[1:])
		past.decisions = past.decisions[:decisionsKept-1]
	}
	past.decisions = append(past.decisions, d)
	l.target = a.Target
	l.log().Info("decided", zap.Int("from", d.From), zap.Int("to", d.To), zap.String("reason", d.Reason),
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
	// Those that drain are instances too, until they are told to stop.
	missing = min(missing, l.settings.Max-cur.existing()-coming)
	if l.exiting != nil {
		// Nobody may wait any more, so nobody would use it.
		missing = 0
	}
	if !cur.heard && !cur.traits.Local {
		// An order is absolute: "be one" would stop what already runs there,
		// as long as that is not known. The first report comes in a moment,
		// and be it that the platform cannot be asked.
		return 0
	}
	if cur.ordering {
		// Places are for starts that are ordered: they stay until it is known
		// what came of the order.
		return 0
	}
	if missing > 0 && now.Before(l.backoffUntil) {
		next.by(l.backoffUntil)
		missing = 0
	}
	if l.failures > 0 {
		// One start shows whether it works again.
		missing = min(missing, max(0, 1-starting-coming))
	}
	if missing <= 0 {
		l.budget.claim(l, 0, false, time.Time{})
		l.budget.giveBack(int(l.granted.Swap(0)))
		return 0
	}
	stats := l.reserver.Stats()
	since := stats.Oldest()
	if since.IsZero() {
		since = now
	}
	free := int(l.granted.Load())
	if free < missing {
		free += l.budget.claim(l, missing-free, stats.Open == 0 && starting+coming == 0, since)
	}
	starts := min(missing, free)
	l.granted.Add(-int32(starts))
	l.places += int32(starts)
	return starts
}
