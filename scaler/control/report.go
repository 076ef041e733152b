package control

import (
	"context"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// changed tells the observer about i.
func (l *Loop) changed(i *instance) {
	if l.delayed != nil {
		*l.delayed = append(*l.delayed, i.status())
		return
	}
	l.observer.Observe(i.status())
}

// delayChanges keeps changes of instances back until tell is called: the
// decision that causes them is told first. The lock is held all the time.
func (l *Loop) delayChanges() (tell func()) {
	var delayed []InstanceStatus
	l.delayed = &delayed
	return func() {
		l.delayed = nil
		for _, s := range delayed {
			l.observer.Observe(s)
		}
	}
}

// reported takes a report in. It is what Env.Report calls.
func (l *Loop) reported(r *revision, rep scaler.Report) {
	l.mu.Lock()
	if r.scaler == nil {
		// Open is still at work: what it says first is taken in when it is
		// known who says it. Only the latest counts.
		r.early = &rep
		l.mu.Unlock()
		return
	}
	l.take(r, rep)
	l.mu.Unlock()
	l.Trigger()
}

// take merges a report with what is known. The lock is held.
func (l *Loop) take(r *revision, rep scaler.Report) {
	first := !r.heard
	r.heard = true
	now := time.Now()
	seen := make(map[string]bool, len(rep.Instances))
	for _, ri := range rep.Instances {
		seen[ri.ID] = true
		i := r.instances[ri.ID]
		if i == nil {
			i = l.inherit(r, ri.ID)
		}
		if i == nil {
			if ri.Phase == scaler.PhaseEnded && ri.Failure == nil && !ri.Completed {
				continue
			}
			i = &instance{Instance: ri, revision: r, unreadyFrom: now, newborn: !first}
			r.add(i)
			if ri.Phase != scaler.PhaseEnded {
				l.log().Debug("instance exists", slog.String("instance", i.ID), slog.String("address", i.Address))
				l.changed(i)
			}
			l.update(i, ri, now)
			l.watchStart(i)
			continue
		}
		l.update(i, ri, now)
	}
	for id, i := range r.instances {
		if !seen[id] {
			l.ended(i, nil, now)
		}
	}
	if first && rep.Trouble == nil {
		l.dropFollowed(now)
	}
	r.desired, r.remains = rep.Desired, int32(rep.Remains)
	if !r.ordering {
		l.takeNumber(r, first, now)
	}
	l.trouble(r, rep.Trouble, now)
	r.holding(rep.Hold)
}

// holding takes note of a hold on the number of instances, and logs its
// reason when that changes.
func (r *revision) holding(h *scaler.Hold) {
	var before, now *scaler.Failure
	if r.hold != nil {
		before = r.hold.Failure
	}
	if h != nil {
		now = h.Failure
	}
	r.hold = h
	switch l := r.loop; {
	case now != nil && (before == nil || before.Reason != now.Reason || before.Short != now.Short):
		words := "another program scales the service"
		if now.Reason == scaler.ReasonQuota {
			words = "the platform has no more instances"
		}
		l.log().Warn(words, slog.Any("error", now))
	case now == nil && before != nil && before.Reason == scaler.ReasonQuota:
		l.log().Info("the platform has more instances again")
	case now == nil && before != nil:
		l.log().Info("no other program scales the service any more", slog.String("before", scaler.Readable(before.Short)))
	}
}

// update takes in what a report says about one instance.
func (l *Loop) update(i *instance, ri scaler.Instance, now time.Time) {
	i.Instance = ri
	switch ri.Phase {
	case scaler.PhaseEnded:
		l.ended(i, ri.Failure, now)
		return
	case scaler.PhaseStopping:
		switch {
		case i.stage == draining:
			i.move(stopping)
			l.changed(i)
		case !i.stage.told():
			i.move(taken)
			l.changed(i)
		}
		return
	}
	if i.slots != nil {
		i.slots.SetSlots(l.slotsHere(i))
	}
	if i.stage.told() {
		return
	}
	if ri.Address != "" && i.revision == l.current() {
		l.located(now)
	}
	l.judge(i, now)
	if f := ri.Failure; f != nil && i.stage == starting && i.revision == l.current() && (i.blamed == nil || i.blamed.Reason != f.Reason || i.blamed.Short != f.Short) {
		i.blamed = f
		l.startFailed(f, now)
	}
}

// judge acts on what the platform says about the readiness of i, or begins to
// find it out.
func (l *Loop) judge(i *instance, now time.Time) {
	platform := l.settings.Check.Kind == CheckPlatform
	switch was := i.readiness(); {
	case i.Address == "" || i.stage.told():
	case i.Unhealthy && was != ready:
		i.stopProbe()
	case platform && !i.Unhealthy && i.Phase == scaler.PhaseReady:
		l.ready(i, now)
	case (platform || i.Unhealthy) && was == ready:
		// Ready no longer: no new request until it is again.
		i.turn(unready)
		if i.unreadyFrom.IsZero() {
			i.unreadyFrom = now
		}
		l.changed(i)
	case !platform && i.probe == nil && i.stage.coming():
		l.startProbe(i, 0)
	}
}

// takeNumber takes note of numbers that are not of our making: more is
// capacity, which goes down by policy; fewer is put right by the next
// decision while there is demand, and is welcome while there is none. What a
// first report says was there before.
func (l *Loop) takeNumber(r *revision, first bool, now time.Time) {
	switch {
	case r != l.current():
	case r.desired > r.ordered:
		if first {
			l.log().Info("instances run already", slog.Int("instances", r.desired))
		} else {
			l.log().Info("more instances were asked for than Usher ordered", slog.Int("instances", r.desired), slog.Int("ordered", r.ordered))
		}
		l.asked(now, r.desired, false)
		l.reserver.ResetIdle()
	case r.desired < r.ordered && l.stats().Demand == 0:
		l.reserver.TakePeak() // the demand of before is history, too
		l.asked(now, r.desired, true)
	}
	r.ordered = r.desired
}

// trouble takes note of what the platform says about itself.
func (l *Loop) trouble(r *revision, f *scaler.Failure, now time.Time) {
	before := r.trouble
	r.trouble = f
	switch {
	case f != nil && (before == nil || before.Reason != f.Reason || before.Short != f.Short):
		l.log().Warn("the platform reports trouble", slog.String("reason", string(f.Reason)), slog.Any("error", f))
		r.blamed = false
	case f == nil && before != nil:
		l.log().Info("the platform's trouble is over", slog.String("reason", string(before.Reason)))
		if r == l.current() && l.lastFailure != nil && l.lastFailure.Reason == before.Reason {
			// What made starts fail is gone: no request has to wait any longer.
			l.fresh(now)
		}
	}
}

// startProbe probes i until it is ready, beginning after a pause.
func (l *Loop) startProbe(i *instance, pause time.Duration) {
	i.stopProbe()
	check, network, address := l.settings.Check, i.Network, i.Address
	if check.Kind == CheckPlatform {
		// Of an ejected instance the platform's word is known to be not
		// enough: it gets nothing while it refuses connections.
		check = Check{Kind: CheckTCP}
	}
	check.peer = i.peerCheck()
	ctx, cancel := context.WithCancel(l.context())
	i.probe = cancel
	confirm := i.confirmation()
	l.background(func() {
		if pause > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
		err := check.untilReady(ctx, network, address, confirm, func(err error) {
			l.mu.Lock()
			i.lastProbe = err
			l.mu.Unlock()
		})
		if err != nil {
			return
		}
		l.mu.Lock()
		if ctx.Err() == nil {
			l.probed(i, time.Now())
		}
		l.mu.Unlock()
		l.Trigger()
	})
}

// confirmation is what has to say yes, too, after a probe of i has passed; nil if
// nothing has to. Where an address can be given to something else, what answers at
// that of an ejected instance may be another program. The lock is held.
func (i *instance) confirmation() func(context.Context) error {
	id := i.ID
	if c, ok := i.revision.scaler.(scaler.Confirmer); ok {
		return func(ctx context.Context) error { return c.Confirm(ctx, id) }
	}
	if v, ok := i.revision.scaler.(scaler.Verifier); ok && i.slots != nil {
		return func(ctx context.Context) error { return v.Verify(ctx, id) }
	}
	return nil
}

func (i *instance) stopProbe() {
	if i.probe != nil {
		i.probe()
		i.probe = nil
	}
}

// probed takes note that a probe of i has passed.
func (l *Loop) probed(i *instance, now time.Time) {
	i.stopProbe()
	if i.slots != nil && i.slots.Stats().Ejected {
		l.log().Info("ejected instance is ready again", slog.String("instance", i.ID))
		i.slots.Restore()
		if i.readiness() == ready {
			i.unreadyFrom, i.lastProbe = time.Time{}, nil
			l.changed(i)
		}
	}
	if l.settings.Check.Kind != CheckPlatform {
		l.ready(i, now)
	}
}

// ready gives the slots of i to the line: in this moment, not at the next
// decision.
func (l *Loop) ready(i *instance, now time.Time) {
	first := i.stage == starting
	switch {
	case first:
		i.readySince = now
		if !i.Adopted {
			l.record().started(max(1, now.Sub(i.unreadyFrom)))
		}
		i.diagnosis, i.mistaken = scaler.Diagnosis{}, false
		switch {
		case !l.starting():
		case i.Adopted:
			l.notCold() // nothing was started
		default:
			// Told before the waiting requests go on.
			l.located(now)
			l.woken(i.ID, now)
		}
		add := l.reserver.Add
		if i.revision.verifies() {
			add = l.reserver.AddUnbound
		}
		i.slots = add(i.ID, i.revision.id(), i.Network, i.Address, l.slotsHere(i))
		i.move(ready)
		l.log().Info("instance ready", slog.String("instance", i.ID), slog.String("address", i.Address),
			slog.Duration("after", now.Sub(i.unreadyFrom)))
	case i.readiness() == unready && !i.mustStop && !i.stage.told():
		i.turn(ready)
		if i.slots.Stats().Ejected {
			// Its probe decides.
			if i.probe == nil {
				l.startProbe(i, i.slots.Pause())
			}
			l.changed(i)
			return
		}
	default:
		// It is ready already, or on its way out.
		return
	}
	i.unreadyFrom, i.lastProbe = time.Time{}, nil
	if first && i.revision == l.current() {
		// Whether the start has really succeeded shows in a while; until then
		// failures stay counted, but nothing waits for them.
		l.permanentFailure, l.backoffUntil = false, time.Time{}
		if f := l.atHand(now); f != nil { // its time begins
			f.ready = true
		}
	}
	l.refuse(now)
	l.changed(i)
	l.publish(now)
}

// ended forgets an instance that is gone, and judges how it went.
func (l *Loop) ended(i *instance, f *scaler.Failure, now time.Time) {
	delete(i.revision.instances, i.ID)
	last := i.stage
	i.move(ended)
	if i.slots != nil {
		if f != nil && !last.told() && now.Sub(i.readySince) < ProvenAfter {
			// Requests inside are told: it was never able to serve, perhaps.
			i.slots.RemoveFor(f)
		}
		l.part(i)
		l.removeSlots(i)
	}
	l.changed(i)
	if last == stopping || last == taken && f == nil {
		l.log().Info("instance stopped", slog.String("instance", i.ID))
		return
	}
	if i.Completed {
		l.completed(i, now)
		return
	}
	if f == nil {
		f = &scaler.Failure{Reason: scaler.ReasonExit, Short: "the instance is gone"}
	}
	switch {
	case last == draining || i.revision != l.current():
		// It was on its way out, or of a revision that is: that says nothing
		// about the starts to come.
		l.log().Info("instance ended before it was stopped", slog.String("instance", i.ID), slog.Any("error", f))
	case i.Adopted:
		l.lastFailure = &failureAt{f, now}
		l.log().Warn("an adopted instance ended by itself", slog.String("instance", i.ID), slog.Any("error", f))
	case i.before == starting:
		l.startFailed(f, now)
	case now.Sub(i.readySince) < ProvenAfter:
		l.startFailed(&scaler.Failure{
			Reason: f.Reason, Short: f.Short + " shortly after it was ready", Detail: f.Detail, Err: f.Err,
		}, now)
	default:
		l.lastFailure = &failureAt{f, now}
		l.log().Warn("instance ended by itself", slog.String("instance", i.ID), slog.Any("error", f))
	}
}

// removeSlots takes the slots of i away at once, and ends what hangs in it a
// moment later.
func (l *Loop) removeSlots(i *instance) {
	i.slots.Remove()
	if i.slots.Stats().InUse > 0 {
		l.keepLeft(i.slots)
	}
}

// drain cordons i, to be stopped once it is empty or its time is over.
func (l *Loop) drain(i *instance, now time.Time) {
	until := now.Add(l.settings.DrainTimeout)
	if i.stage.leaving() {
		if until.Before(i.drainUntil) {
			i.drainUntil = until // it was not in a hurry before
		}
		return
	}
	i.move(draining)
	i.drainUntil = until
	l.changed(i)
}

// condemn drains i for good: demand does not take it back.
func (l *Loop) condemn(i *instance, now time.Time) {
	i.mustStop = true
	i.stopProbe()
	l.drain(i, now)
}
