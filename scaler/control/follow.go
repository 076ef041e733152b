package control

import (
	"slices"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// follow carries the advice out as far as it can be now. It returns false if
// the advice is void, because a request came in between.
func (l *Loop) follow(a scaler.Advice, stats reserver.Stats, now time.Time, next *recheck) bool {
	tell := l.delayChanges()
	if !l.shrink(a, stats.IdleSince, now, next) {
		tell()
		return false
	}
	l.setTarget(a, stats, now)
	tell()
	if l.target == 0 && a.Idle && l.done != nil {
		l.done.reset = true
	}
	l.returnPlaces(stats, now, next)
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
func (l *Loop) shrink(a scaler.Advice, idleSince, now time.Time, next *recheck) bool {
	guard := time.Time{}
	if a.Idle {
		here := l.reserver.Stats()
		guard = here.IdleSince
		if s := l.withElsewhere(here); s.Demand > 0 || !s.IdleSince.Equal(idleSince) {
			return false
		}
	}
	// An earlier revision serves for what the later ones cannot yet.
	serving := 0
	for k, r := range slices.Backward(l.revisions) {
		surplus := r.surplus(max(0, a.Target-serving))
		if r != l.current() && l.stopsFirst() {
			// The new revision waits for the end of these.
			surplus, _ = r.count()
			l.owed = l.owed || surplus > 0 && a.Target > 0
		}
		if l.overtaken(k) {
			surplus = max(surplus, len(r.unready()))
		}
		for _, i := range r.instances {
			if i.serves() {
				serving++
			}
		}
		// What is not owned stays as it is when the service is no longer
		// configured.
		if l.retired && !r.traits.Owned && l.suspended == nil && !l.asleep {
			continue
		}
		coming, serves := r.victims(surplus)
		for _, i := range coming {
			if surplus > 0 {
				l.drain(i, now)
				surplus--
			}
		}
		if surplus <= 0 {
			continue
		}
		if r == l.current() {
			serves = l.free(r, serves, now, next)
		}
		free, inSession, until := serves, []*reserver.Instance(nil), time.Time{}
		if l.goesOn() {
			free, inSession, until = bySession(serves)
		}
		chosen := l.reserver.CordonLeastLoaded(surplus, free, guard)
		if surplus -= len(chosen); !a.Idle && r == l.current() {
			// Sessions keep their instances while demand falls, up to max.
			kept := surplus
			surplus = min(surplus, r.surplus(l.settings.Max)-len(chosen))
			if kept > max(surplus, 0) {
				next.by(until)
			}
		}
		chosen = append(chosen, l.reserver.CordonLeastLoaded(surplus, inSession, guard)...)
		if len(chosen) == 0 && !guard.IsZero() && len(serves) > 0 {
			return false
		}
		for _, c := range chosen {
			i := r.instances[c.ID]
			i.asleep = a.Idle
			l.drain(i, now)
		}
	}
	return true
}

// goesOn reports whether further requests of the sessions can come, as far as
// that is known.
func (l *Loop) goesOn() bool {
	return !l.retired && !l.asleep && l.suspended == nil && l.exiting == nil
}

// bySession parts instances by whether a session on them may go on. until is
// when the first of those may have ended; zero if there is none.
func bySession(all []*reserver.Instance) (free, inSession []*reserver.Instance, until time.Time) {
	for _, i := range all {
		t := i.SessionUntil()
		if t.IsZero() {
			free = append(free, i)
			continue
		}
		inSession = append(inSession, i)
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	return free, inSession, until
}

// drained reports whether i, which drains, is to be stopped now: it is empty,
// or its time is over. One with a session waits for the session's next request,
// unless it goes because nothing was asked for at all, or sessions do not go on.
func (i *instance) drained(sessions bool, now time.Time, next *recheck) bool {
	if i.slots == nil || !now.Before(i.drainUntil) {
		return true
	}
	next.by(i.drainUntil)
	if until := i.slots.SessionUntil(); sessions && !i.asleep && now.Before(until) {
		next.by(until)
		return false
	}
	return i.inUse() == 0 && i.emptyElsewhere()
}

// retire closes i to its sessions, for it is to be stopped now. It does not if a
// request of one came in the last moment and may finish.
func (i *instance) retire(now time.Time) bool {
	return i.slots == nil || i.slots.Retire(!now.Before(i.drainUntil))
}

// overtaken says whether what revision k starts is of no use: an earlier one
// that lives on is nearer to serving, and two later ones are nearer to what is
// wanted. Or reloads and restarts in a row would pile up starts.
func (l *Loop) overtaken(k int) bool {
	if k >= len(l.revisions)-2 || !l.revisions[k].traits.Owned {
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
func (l *Loop) setTarget(a scaler.Advice, stats reserver.Stats, now time.Time) {
	if a.Target == l.target {
		return
	}
	d := Decision{Time: now, From: l.target, To: a.Target, Reason: a.Reason, Inputs: map[string]any{
		"in_use": stats.InUse, "waiting": stats.Waiting, "visitors": stats.Visitors, "demand": stats.Demand, "ready": stats.Open,
		"min": l.settings.Min, "max": l.settings.Max, "concurrency": l.settings.Concurrency,
		"failures": l.failures,
	}}
	if stats.Demand == 0 {
		d.Inputs["idle_ms"] = now.Sub(stats.IdleSince).Milliseconds()
	}
	if stats.Open == 0 && l.target == 0 && (stats.Demand > 0 || l.startRequested) {
		asked := now
		if t := stats.Oldest(); !t.IsZero() {
			asked = t
		}
		l.waking(&d, asked)
	}
	past := l.record()
	if a.Target == 0 {
		l.cold = nil
		past.toSleep(now)
	}
	past.decided(d)
	l.target = a.Target
	d.ColdStart = nil // it goes on changing
	l.observer.Observe(d)
}

// grow takes back what drains needlessly, and returns how many starts to
// order now, as far as pauses and the budget allow.
func (l *Loop) grow(now time.Time, next *recheck) int {
	cur := l.current()
	alive, first := cur.count()
	for _, i := range cur.instances {
		if alive < l.target && i.stage == draining && !i.mustStop {
			i.move(i.before)
			if i.stage == starting {
				first++
			}
			if i.stage.coming() {
				// It goes on from where it was.
				l.judge(i, now)
			}
			l.changed(i)
			alive++
		}
	}
	coming := max(0, cur.desired-cur.existing())
	missing := l.target - alive - coming
	missing = min(missing, l.room(coming))
	if !cur.ordering {
		// Until it is known what came of an order, desired is that before it.
		l.owed = l.owed && alive+coming == 0 && l.target > 0
	}
	if l.exiting != nil {
		// No request may wait any more, so none would use it.
		missing = 0
	}
	if missing > 0 && !l.needsMet(now, next) {
		missing = 0
	}
	if cur.scaler != nil && !cur.heard && !cur.traits.OrdersBlind {
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
		missing = min(missing, max(0, 1-first-coming))
	}
	if missing <= 0 {
		l.withdrawClaim()
		l.placeWait(false)
		return 0
	}
	stats := l.stats()
	since := stats.Oldest()
	if since.IsZero() {
		since = now
	}
	if platform := cur.platform(); platform != l.platform {
		l.withdrawClaim()
		l.platform = platform
	}
	free := int(l.granted.Load())
	if free < missing {
		free += l.budget.claim(l, l.platform, missing-free, stats.Open == 0 && first+coming == 0, since)
	}
	starts := min(missing, free)
	l.granted.Add(-int32(starts))
	cur.takePlaces(int32(starts), l.platform)
	l.placeWait(starts == 0)
	return starts
}

// withdrawClaim gives up what the loop claims of the start budget, and what it
// has got and not used. The lock is held.
func (l *Loop) withdrawClaim() {
	l.budget.claim(l, l.platform, 0, false, time.Time{})
	l.budget.giveBack(l, l.platform, int(l.granted.Swap(0)))
}
