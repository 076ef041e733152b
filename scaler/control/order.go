package control

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// order gives the platform the order that is due, if there is one.
func (l *Loop) order(r *revision, starts int, now time.Time, next *recheck) {
	if r.ordering || r.closing || !l.mayOrder(r) {
		return
	}
	var o scaler.Order
	for _, i := range r.instances {
		switch drains := i.stage == draining; {
		case i.stage.told():
		case drains && i.drained(l.goesOn(), now, next):
			o.Stop = append(o.Stop, i.ID)
		default:
			if !i.Extra {
				o.Instances++
			}
		}
	}
	if r.traits.Trims {
		// During a replacement, or after an order of another program, the
		// platform has more than it works towards. The rest is on its way out.
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
	if l.retired && !r.traits.Owned && len(o.Stop) == 0 && starts == 0 {
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
		// Requests wait for the starts, and none for the stops.
		o.Instances += len(o.Stop)
		o.Stop = nil
	}
	o.Stop = slices.DeleteFunc(o.Stop, func(id string) bool {
		i := r.instances[id]
		if i.retire(now) {
			return false
		}
		if !i.Extra {
			o.Instances++
		}
		return true
	})
	if len(o.Stop) == 0 && o.Instances == r.desired {
		return
	}
	for _, id := range o.Stop {
		i := r.instances[id]
		i.move(stopping)
		l.changed(i)
	}
	before := r.ordered
	r.ordering = true
	r.ordered = o.Instances
	l.background(func() { l.carryOut(r, o, starts, before) })
}

// carryOut gives an order and takes note of what came of it. The number that
// was in force before it is needed if it fails.
func (l *Loop) carryOut(r *revision, o scaler.Order, starts, before int) {
	ctx, cancel := context.WithTimeout(l.context(), orderTimeout)
	defer cancel()
	late, err := l.openLate(r)
	if !late {
		err = r.scaler.Scale(ctx, o)
	}
	now := time.Now()
	l.mu.Lock()
	r.ordering = false
	switch {
	case err == nil && late:
		// Nothing is ordered yet: what exists there has to be known first.
		r.ordered = before
	case err == nil:
		r.retries, r.retryAt = 0, time.Time{}
		r.refusal = nil
		if starts > 0 && r == l.current() {
			l.accepted(now)
		}
	default:
		// Not done, or only in part: what existed was asked for by us.
		r.ordered = max(before, o.Instances)
		l.refused(r, o, starts, scaler.AsFailure(err), now)
	}
	// Another program may have asked for something meanwhile.
	l.takeNumber(r, late, now)
	l.mu.Unlock()
	l.Trigger()
}

// orderTimeout bounds one call of a platform.
const orderTimeout = 30 * time.Second

// refused deals with an order that failed.
func (l *Loop) refused(r *revision, o scaler.Order, starts int, f *scaler.Failure, now time.Time) {
	if l.closing() {
		return
	}
	for _, id := range o.Stop {
		// They still run, as far as is known: they are told again, unless
		// they are needed before that. A platform that refuses to stop a
		// healthy instance must not make the service unavailable.
		if i := r.instances[id]; i != nil && i.stage == stopping && i.Phase != scaler.PhaseStopping {
			i.move(draining)
			l.changed(i)
		}
	}
	later := errors.Is(f, scaler.ErrLater)
	switch {
	case later:
		l.log().Debug("order postponed", slog.String("revision", r.id()), slog.Int("instances", o.Instances),
			slog.Any("stop", o.Stop), slog.Any("error", f))
	case starts > 0 && r == l.current():
		l.startFailed(f, now)
	default:
		l.log().Warn("order failed", slog.String("revision", r.id()), slog.Int("instances", o.Instances),
			slog.Any("stop", o.Stop), slog.Any("error", f))
		r.refusal = f
	}
	if starts == 0 || len(o.Stop) > 0 || later {
		r.retries++
		r.retryAt = now.Add(backoff(int(r.retries)))
	}
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
		busy = busy || r.ordering || r.traits.Owned && len(r.instances) > 0
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
			l.log().Warn("closing a service that is no longer configured", slog.Any("error", err))
		}
		done()
	}()
}

// retirePause is how often a service that is no longer configured looks
// whether its last request has gone.
const retirePause = time.Second

func (l *Loop) close(r *revision, stop time.Duration) {
	// Not with the loop's context: if Close were cut short, nothing would stop
	// what the backend left running.
	ctx, cancel := context.WithTimeout(context.Background(), stop+orderTimeout)
	defer cancel()
	l.mu.Lock()
	opened := r.scaler
	l.mu.Unlock()
	if opened == nil {
		// It was never opened.
	} else if err := opened.Close(ctx, stop); err != nil {
		l.log().Warn("closing a revision's backend", slog.String("revision", r.id()), slog.Any("error", err))
	}
	l.log().Debug("revision closed", slog.String("revision", r.id()))
	l.mu.Lock()
	l.revisions = slices.DeleteFunc(slices.Clone(l.revisions), func(o *revision) bool { return o == r })
	l.mu.Unlock()
	l.Trigger()
}
