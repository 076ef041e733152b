package scaler

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// changed tells the observer about i.
func (l *Loop) changed(i *instance) { l.observer.InstanceChanged(i.status()) }

// reported takes a report in. It is what Env.Report calls.
func (l *Loop) reported(r *revision, rep Report) {
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
	l.Poke()
}

// take merges a report with what is known. The lock is held.
func (l *Loop) take(r *revision, rep Report) {
	first := !r.heard
	r.heard = true
	now := time.Now()
	seen := make(map[string]bool, len(rep.Instances))
	for _, ri := range rep.Instances {
		seen[ri.ID] = true
		i := r.instances[ri.ID]
		if i == nil {
			if ri.Phase == PhaseEnded && ri.Failure == nil {
				continue
			}
			i = &instance{Instance: ri, revision: r, unreadyFrom: now}
			r.add(i)
			if ri.Phase != PhaseEnded {
				l.log().Debug("instance exists", zap.String("instance", i.ID), zap.String("address", i.Address))
				l.changed(i)
			}
		}
		l.update(i, ri, now)
	}
	for id, i := range r.instances {
		if !seen[id] {
			i.Phase = PhaseEnded
			l.ended(i, nil, now)
		}
	}
	r.desired = rep.Desired
	if !r.ordering {
		l.adoptNumber(r, first, now)
	}
	l.trouble(r, rep.Trouble)
	r.holding(rep.Hold)
}

// holding takes note of what somebody else has to say about the number of
// instances, and says who it is when that changes.
func (r *revision) holding(h *Hold) {
	var before, now *Failure
	if r.hold != nil {
		before = r.hold.Failure
	}
	if h != nil {
		now = h.Failure
	}
	r.hold = h
	switch l := r.loop; {
	case now != nil && (before == nil || before.Reason != now.Reason || before.Short != now.Short):
		l.log().Warn("somebody else scales the service", zap.Error(now))
	case now == nil && before != nil:
		l.log().Info("nobody else scales the service any more", zap.String("before", Readable(before.Short)))
	}
}

// update takes in what a report says about one instance.
func (l *Loop) update(i *instance, ri Instance, now time.Time) {
	i.Instance = ri
	switch ri.Phase {
	case PhaseEnded:
		l.ended(i, ri.Failure, now)
		return
	case PhaseStopping:
		if !i.stopping {
			i.stopping = true
			i.stopProbe()
			if i.slots != nil {
				i.slots.Cordon()
			}
			l.changed(i)
		}
		return
	}
	if i.stopping {
		return
	}
	if ri.Address != "" && i.revision == l.current() {
		l.located(now)
	}
	l.judge(i, now)
	if f := ri.Failure; f != nil && i.slots == nil && !i.draining && i.revision == l.current() && (i.blamed == nil || i.blamed.Reason != f.Reason || i.blamed.Short != f.Short) {
		i.blamed = f
		l.startFailed(f, now)
	}
}

// judge acts on what the platform says about the readiness of i, or begins to
// find it out.
func (l *Loop) judge(i *instance, now time.Time) {
	platform := l.settings.Check.Kind == CheckPlatform
	switch {
	case i.Address == "" || i.stopping:
	case i.Unhealthy && (i.slots == nil || i.withdrawn):
		i.stopProbe()
	case platform && !i.Unhealthy && i.Phase == PhaseReady:
		if i.slots == nil || i.withdrawn {
			l.ready(i)
		}
	case (platform || i.Unhealthy) && i.slots != nil && !i.withdrawn:
		// Ready no longer: no new request until it is again.
		i.withdrawn = true
		if i.unreadyFrom.IsZero() {
			i.unreadyFrom = now
		}
		i.slots.Cordon()
		l.changed(i)
	case !platform && i.probe == nil && !i.draining && (i.slots == nil || i.withdrawn):
		l.startProbe(i, 0)
	}
}

// adoptNumber takes note of numbers that are not of our making: more is
// capacity, which goes down by policy; fewer is put right by the next
// decision while there is demand, and is welcome while there is none. What a
// first report says was there before.
func (l *Loop) adoptNumber(r *revision, first bool, now time.Time) {
	switch {
	case r != l.current():
	case r.desired > r.ordered:
		if first {
			l.log().Info("instances run already", zap.Int("instances", r.desired))
		} else {
			l.log().Info("somebody else asked for more instances", zap.Int("instances", r.desired), zap.Int("ordered", r.ordered))
		}
		l.history = append(l.history, Sample{At: now, Instances: r.desired})
		l.reserver.Touch()
	case r.desired < r.ordered && l.reserver.Stats().Demand == 0:
		l.reserver.TakePeak() // the demand of before is history, too
		l.history = []Sample{{At: now, Instances: r.desired}}
	}
	r.ordered = r.desired
}

// trouble takes note of what the platform says about itself.
func (l *Loop) trouble(r *revision, f *Failure) {
	before := r.trouble
	r.trouble = f
	switch {
	case f != nil && (before == nil || before.Reason != f.Reason || before.Short != f.Short):
		l.log().Warn("the platform reports trouble", zap.String("reason", string(f.Reason)), zap.Error(f))
		r.blamed = false
	case f == nil && before != nil:
		l.log().Info("the platform's trouble is over", zap.String("reason", string(before.Reason)))
		if r == l.current() && l.lastFailure != nil && l.lastFailure.Reason == before.Reason {
			// What made starts fail is gone: nobody has to wait any longer.
			l.failures, l.hopeless, l.lastFailure, l.backoffUntil = 0, false, nil, time.Time{}
			l.refuse()
		}
	}
	l.tellPlatform()
}

// tellPlatform tells the observer about the trouble of the current revision
// if it is not what was told last.
func (l *Loop) tellPlatform() {
	f, told := l.current().trouble, l.troubleTold
	if f == told || f != nil && told != nil && f.Reason == told.Reason && f.Short == told.Short {
		return
	}
	l.troubleTold = f
	l.observer.PlatformUp(f == nil || f.Reason != ReasonPlatform, f)
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
	ctx, cancel := context.WithCancel(l.context())
	i.probe = cancel
	var confirm func(context.Context) error
	if c, ok := i.revision.scaler.(Confirmer); ok {
		id := i.ID
		confirm = func(ctx context.Context) error { return c.Confirm(ctx, id) }
	}
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
			l.probed(i)
		}
		l.mu.Unlock()
		l.Poke()
	})
}

func (i *instance) stopProbe() {
	if i.probe != nil {
		i.probe()
		i.probe = nil
	}
}

// probed takes note that a probe of i has passed.
func (l *Loop) probed(i *instance) {
	i.stopProbe()
	if i.slots != nil && i.slots.Stats().Ejected {
		l.log().Info("ejected instance is ready again", zap.String("instance", i.ID))
		i.slots.Restore()
		if !i.withdrawn {
			i.unreadyFrom, i.lastProbe = time.Time{}, nil
			l.changed(i)
		}
	}
	if l.settings.Check.Kind != CheckPlatform {
		l.ready(i)
	}
}

// ready gives the slots of i to the line: in this moment, not at the next
// decision.
func (l *Loop) ready(i *instance) {
	now, first := time.Now(), i.slots == nil
	switch {
	case i.stopping || i.doomed || i.slots == nil && i.draining:
		// It is on its way out.
		return
	case first:
		i.readySince = now
		switch {
		case !l.starting():
		case i.Adopted:
			l.notCold() // nothing was started
		default:
			// Told before who waited for it goes on.
			l.located(now)
			l.woken(i.ID, now)
		}
		add := l.reserver.Add
		if _, ok := i.revision.scaler.(Voucher); ok {
			add = l.reserver.AddUnbound
		}
		i.slots = add(i.ID, i.revision.id(), i.Network, i.Address, l.settings.Concurrency)
		l.log().Info("instance ready", zap.String("instance", i.ID), zap.String("address", i.Address),
			zap.Duration("after", now.Sub(i.unreadyFrom)))
	case i.withdrawn:
		i.withdrawn = false
		if !i.draining {
			i.slots.Uncordon()
		}
		if i.slots.Stats().Ejected {
			// Its probe decides.
			if i.probe == nil {
				l.startProbe(i, i.slots.Pause())
			}
			l.changed(i)
			return
		}
	default:
		return
	}
	i.unreadyFrom, i.lastProbe = time.Time{}, nil
	if first && i.revision == l.current() {
		// Whether the start has really succeeded shows in a while; until then
		// failures stay counted, but nothing waits for them.
		l.hopeless, l.backoffUntil = false, time.Time{}
	}
	l.refuse()
	l.changed(i)
}

// ended forgets an instance that is gone, and judges how it went.
func (l *Loop) ended(i *instance, f *Failure, now time.Time) {
	delete(i.revision.instances, i.ID)
	i.stopProbe()
	if i.slots != nil {
		l.removeSlots(i)
	}
	i.Phase = PhaseEnded
	l.changed(i)
	if i.stopping && f == nil || i.told {
		l.log().Info("instance stopped", zap.String("instance", i.ID))
		return
	}
	if f == nil {
		f = &Failure{Reason: ReasonExit, Short: "the instance is gone"}
	}
	switch {
	case i.draining || i.revision != l.current():
		// It was on its way out, or of a revision that is: that says nothing
		// about the starts to come.
		l.log().Info("instance ended before it was stopped", zap.String("instance", i.ID), zap.Error(f))
	case i.Adopted:
		l.lastFailure = &failureAt{f, now}
		l.log().Warn("an adopted instance ended by itself", zap.String("instance", i.ID), zap.Error(f))
	case i.slots == nil:
		l.startFailed(f, now)
	case now.Sub(i.readySince) < provenAfter:
		l.startFailed(&Failure{
			Reason: f.Reason, Short: f.Short + " shortly after it was ready", Detail: f.Detail, Err: f.Err,
		}, now)
	default:
		l.lastFailure = &failureAt{f, now}
		l.log().Warn("instance ended by itself", zap.String("instance", i.ID), zap.Error(f))
	}
}

// removeSlots takes the slots of i away at once, and ends what hangs in it a
// moment later.
func (l *Loop) removeSlots(i *instance) {
	s := i.slots
	s.Remove()
	if s.Stats().InUse == 0 {
		return
	}
	l.background(func() {
		select {
		case <-l.context().Done():
		case <-time.After(interruptAfter):
		}
		if n := s.Interrupt(ErrGone); n > 0 {
			l.log().Info("interrupted requests inside an instance that is gone", zap.String("instance", s.ID), zap.Int("requests", n))
		}
	})
}

// drain cordons i, to be stopped once it is empty or its time is over.
func (l *Loop) drain(i *instance, now time.Time) {
	if i.draining || i.stopping {
		return
	}
	i.draining = true
	i.drainUntil = now.Add(l.settings.DrainTimeout)
	if i.slots != nil {
		i.slots.Cordon()
	} else {
		i.stopProbe()
	}
	l.changed(i)
}
