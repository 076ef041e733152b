package scaler

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"
)

// order gives the platform the order that is due, if there is one.
func (l *Loop) order(r *revision, starts int, now time.Time, next *recheck) {
	if r.ordering || r.closing {
		return
	}
	var o Order
	for _, i := range r.instances {
		switch {
		case i.stopping:
			continue
		case !i.draining:
			if !i.Extra {
				o.Instances++
			}
			continue
		}
		switch empty := i.slots == nil || i.slots.Stats().InUse == 0; {
		case empty || !now.Before(i.drainUntil):
			o.Stop = append(o.Stop, i.ID)
		default:
			if !i.Extra {
				o.Instances++
			}
			next.by(i.drainUntil)
		}
	}
	if r.traits.Trims {
		// What the platform has above what it works towards, in the midst of
		// a replacement or after somebody else's order, is on its way out.
		o.Instances = max(0, o.Instances-max(0, r.existing()-len(o.Stop)-r.desired))
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
		if starts == 0 {
			return
		}
		// Somebody waits for the starts, nobody for the stops.
		o.Instances += len(o.Stop)
		o.Stop = nil
	}
	for _, id := range o.Stop {
		i := r.instances[id]
		i.stopping, i.told = true, true
		i.stopProbe()
		l.changed(i)
	}
	before := r.ordered
	r.ordering = true
	r.ordered = o.Instances
	l.background(func() { l.carryOut(r, o, starts, before) })
}

// carryOut gives an order and takes note of what came of it. The number that
// was in force before it is needed if it fails.
func (l *Loop) carryOut(r *revision, o Order, starts, before int) {
	ctx, cancel := context.WithTimeout(l.context(), orderTimeout)
	defer cancel()
	err := r.scaler.Scale(ctx, o)
	now := time.Now()
	l.mu.Lock()
	r.ordering = false
	if err == nil {
		r.retries, r.retryAt = 0, time.Time{}
		r.refusal = nil
		if starts > 0 && r == l.current() {
			l.accepted(now)
		}
	} else {
		// Not done, or only in part: what there was is not somebody else's.
		r.ordered = max(before, o.Instances)
		l.refused(r, o, starts, AsFailure(err), now)
	}
	// Somebody else may have asked for something meanwhile.
	l.adoptNumber(r, false, now)
	l.mu.Unlock()
	l.Poke()
}

// orderTimeout bounds one call of a platform.
const orderTimeout = 30 * time.Second

// refused deals with an order that failed.
func (l *Loop) refused(r *revision, o Order, starts int, f *Failure, now time.Time) {
	if l.closing() {
		return
	}
	for _, id := range o.Stop {
		// They still run, as far as is known: they are told again, unless
		// they are needed before that. A platform that refuses to stop a
		// healthy instance must not make the service unavailable.
		if i := r.instances[id]; i != nil && i.Phase != PhaseStopping {
			i.stopping, i.told = false, false
			l.changed(i)
		}
	}
	later := errors.Is(f, ErrLater)
	switch {
	case later:
		l.log().Debug("order postponed", zap.String("revision", r.id()), zap.Int("instances", o.Instances),
			zap.Strings("stop", o.Stop), zap.Error(f))
	case starts > 0 && r == l.current():
		l.startFailed(f, now)
	default:
		l.log().Warn("order failed", zap.String("revision", r.id()), zap.Int("instances", o.Instances),
			zap.Strings("stop", o.Stop), zap.Error(f))
		r.refusal = f
	}
	if starts == 0 || len(o.Stop) > 0 || later {
		r.retries++
		r.retryAt = now.Add(backoff(int(r.retries)))
	}
}

// returnPlaces gives back the places of the start budget whose starts are
// over: accepted, or for local platforms ready or failed. The loop does not
// use them for its next starts, to which others' may be preferred.
func (l *Loop) returnPlaces() {
	for _, r := range l.revisions {
		if r.ordering {
			// Not known yet.
			return
		}
	}
	if done := int(l.places) - l.localStarts(); done > 0 {
		l.places -= int32(done)
		l.budget.giveBack(done)
	}
}

// localStarts is how many starts in progress need a place of the budget until
// the instance is ready or has failed.
func (l *Loop) localStarts() int {
	n := 0
	for _, r := range l.revisions {
		if !r.traits.Local {
			continue
		}
		_, starting := r.count()
		n += starting
		for _, i := range r.instances {
			if i.Adopted && i.slots == nil && !i.stopping && !i.draining {
				n-- // nothing is started
			}
		}
	}
	return n
}

// closeOld closes the backends of earlier revisions that have nothing left.
func (l *Loop) closeOld() {
	cur := l.current()
	for _, r := range l.revisions {
		if r == cur || r.closing || r.ordering || len(r.instances) > 0 || r.desired > 0 {
			continue
		}
		stop := l.settings.StopTimeout
		// If the loop is being closed, Close does it.
		r.closing = l.background(func() { l.close(r, stop) })
	}
}

// finish closes a retired loop when nothing is left to do.
func (l *Loop) finish(now time.Time, next *recheck) {
	if !l.retired || l.onRetired == nil {
		return
	}
	s := l.reserver.Stats()
	busy := s.InUse+s.Waiting > 0 || l.target > 0
	for _, r := range l.revisions {
		busy = busy || r.ordering || r.traits.Local && len(r.instances) > 0
	}
	if busy {
		// Nothing tells when the last request has gone.
		next.by(now.Add(retirePause))
		return
	}
	done := l.onRetired
	l.onRetired = nil
	ctx, cancel := context.WithTimeout(context.Background(), l.settings.StopTimeout+orderTimeout)
	// Close waits for what the loop has started, this goroutine too.
	go func() {
		defer cancel()
		if err := l.Close(ctx); err != nil {
			l.log().Warn("closing a service that is no longer configured", zap.Error(err))
		}
		done()
	}()
}

// retirePause is how often a service that is no longer configured looks
// whether its last request has gone.
const retirePause = time.Second

func (l *Loop) close(r *revision, stop time.Duration) {
	// Not with the loop's context: what is left running by a backend that was
	// not closed to its end nobody else would stop.
	ctx, cancel := context.WithTimeout(context.Background(), stop+orderTimeout)
	defer cancel()
	if err := r.scaler.Close(ctx, stop); err != nil {
		l.log().Warn("closing a revision's backend", zap.String("revision", r.id()), zap.Error(err))
	}
	l.log().Debug("revision closed", zap.String("revision", r.id()))
	l.mu.Lock()
	l.revisions = slices.DeleteFunc(slices.Clone(l.revisions), func(o *revision) bool { return o == r })
	l.mu.Unlock()
	l.Poke()
}
