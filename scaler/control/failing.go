package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// startFailed counts a failed start, and begins the pause before the next.
func (l *Loop) startFailed(f *scaler.Failure, now time.Time) {
	l.lastFailure = &failureAt{f, now}
	if now.Before(l.backoffUntil) && (l.permanentFailure || !f.ForGood) {
		// Starts that were made together fail together: that is one failure.
		l.observer.Observe(StartFailure{Failure: f, Together: true})
		return
	}
	if !now.Before(l.backoffUntil) {
		l.failures++
	}
	pause := backoff(int(l.failures))
	l.backoffUntil = now.Add(pause)
	l.startRequested, l.owed = false, false
	l.observer.Observe(StartFailure{
		Failure: f, InARow: int(l.failures), Attempts: l.settings.startAttempts(), Pause: pause, Serving: l.served(),
	})
	l.permanentFailure = l.permanentFailure || f.ForGood
	l.fallBack(now)
	l.refuse(now)
}

// served says whether an instance of an earlier revision is ready.
func (l *Loop) served() bool {
	for _, r := range l.revisions {
		if r == l.current() {
			continue
		}
		for _, i := range r.instances {
			if i.serves() {
				return true
			}
		}
	}
	return false
}

// countFailures counts what the platform says keeps wanted instances from
// becoming ready. The platform repeats it for as long as it holds. So the
// service is failing again at the end of the pause, unless there is something
// to try: requests that waited would wait in vain.
func (l *Loop) countFailures(now time.Time) {
	cur := l.current()
	alive, first := cur.count()
	coming := max(0, cur.desired-cur.existing())
	if t := cur.trouble; t != nil && !cur.blamed && l.target > alive-first {
		cur.blamed = true
		l.startFailed(t, now)
	}
	if now.Before(l.backoffUntil) || !l.failing() || l.target > alive+coming || cur.ordering {
		return
	}
	f := cur.trouble
	for _, i := range cur.instances {
		if i.stage.leaving() {
			continue
		}
		if i.Failure == nil || i.stage != starting {
			return
		}
		f = i.Failure
	}
	if f != nil && first+coming > 0 {
		l.startFailed(f, now)
	}
}

// failing says whether starts fail and none is ready.
func (l *Loop) failing() bool {
	return l.exhausted() && !l.givesWay && l.reserver.Stats().Open == 0
}

// refuse tells the reserver whether requests may wait now. The weightiest
// reason is given: a suspension, then the exit, then failure.
func (l *Loop) refuse(now time.Time) {
	var r *Refusal
	switch {
	case l.suspended != nil:
		r = l.suspended
	case l.exiting != nil:
		r = l.exiting
	case (now.Before(l.backoffUntil) || l.current() == nil) && l.failing():
		f := l.lastFailure.Failure
		r = &Refusal{Kind: RefusedFailing, Short: scaler.Readable(f.Short), Detail: f.Error(), Until: l.backoffUntil}
		if f.Reason == scaler.ReasonPlatform {
			r.Kind = RefusedPlatform
		}
	}
	if r == nil && l.unmet != nil && l.reserver.Stats().Open == 0 {
		r = l.unmet
	}
	if r == nil && l.follows() && l.reserver.Stats().Open == 0 {
		r = l.sharing.refusal
	}
	same := r == l.refusal || r != nil && l.refusal != nil && *r == *l.refusal
	if same && (l.sharing == nil || !l.sharing.mistaken) {
		return
	}
	l.refusal = r
	l.tellRefused(r)
	switch {
	case same:
	case r == nil:
		l.reserver.Refuse(nil)
	default:
		l.reserver.Refuse(r)
	}
}
