package scaler

import (
	"time"

	"go.uber.org/zap"
)

// startFailed counts a failed start, and begins the pause before the next.
func (l *Loop) startFailed(f *Failure, now time.Time) {
	l.lastFailure = &failureAt{f, now}
	l.observer.StartFailed(f)
	if now.Before(l.backoffUntil) && (l.hopeless || !f.ForGood) {
		// Starts that were made together fail together: that is one failure.
		return
	}
	if !now.Before(l.backoffUntil) {
		l.failures++
	}
	pause := backoff(int(l.failures))
	l.backoffUntil = now.Add(pause)
	l.nudged = false
	words := "start failed"
	if l.served() {
		words = "start failed: the earlier revision keeps serving"
	}
	l.log().Warn(words, zap.String("reason", string(f.Reason)), zap.Bool("for_good", f.ForGood),
		zap.Int32("in_a_row", l.failures), zap.Duration("next_try_in", pause.Round(time.Millisecond)), zap.Error(f))
	l.hopeless = l.hopeless || f.ForGood
	l.refuse()
}

// served says whether an instance of an earlier revision is ready.
func (l *Loop) served() bool {
	for _, r := range l.revisions {
		if r == l.current() {
			continue
		}
		for _, i := range r.instances {
			if i.state() == InstanceReady {
				return true
			}
		}
	}
	return false
}

// blame counts what the platform says to keep wanted instances from becoming
// ready. It says so for as long as that is the case, so what made the service
// failing makes it so again at the end of the pause, unless there is something
// to try: who waits then would wait in vain.
func (l *Loop) blame(now time.Time) {
	cur := l.current()
	alive, starting := cur.count()
	coming := max(0, cur.desired-cur.existing())
	if t := cur.trouble; t != nil && !cur.blamed && l.target > alive-starting {
		cur.blamed = true
		l.startFailed(t, now)
	}
	if now.Before(l.backoffUntil) || !l.failing() || l.target > alive+coming || cur.ordering {
		return
	}
	f := cur.trouble
	for _, i := range cur.instances {
		if i.stopping || i.draining {
			continue
		}
		if i.Failure == nil || i.slots != nil {
			return
		}
		f = i.Failure
	}
	if f != nil && starting+coming > 0 {
		l.startFailed(f, now)
	}
}

// failing says whether starts fail and none is ready.
func (l *Loop) failing() bool {
	return (l.hopeless || l.failures >= startsToFail) && l.reserver.Stats().Open == 0
}

// refuse tells the reserver who may wait now. What weighs most is said: a
// suspension, then the exit, then failure.
func (l *Loop) refuse() {
	var r *Refusal
	switch now := time.Now(); {
	case l.suspended != nil:
		r = l.suspended
	case l.exiting != nil:
		r = l.exiting
	case (now.Before(l.backoffUntil) || l.current() == nil) && l.failing():
		f := l.lastFailure.Failure
		r = &Refusal{Kind: RefusedFailing, Short: Readable(f.Short), Detail: f.Error(), Until: l.backoffUntil}
		if f.Reason == ReasonPlatform {
			r.Kind = RefusedPlatform
		}
	}
	if r == l.refusal || r != nil && l.refusal != nil && *r == *l.refusal {
		return
	}
	l.refusal = r
	if r == nil {
		l.reserver.Refuse(nil)
	} else {
		l.reserver.Refuse(r)
	}
}
