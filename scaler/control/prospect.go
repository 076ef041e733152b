package control

import (
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// A Prospect is what the policy says of this very moment, and of what comes if
// nothing happens. Nothing is decided by it.
type Prospect struct {
	// Reason says why there are as many instances as there are. It is empty if
	// the policy has nothing to say, or wants another number by now.
	Reason string

	// KeptFor names the services for which the last instance stays; empty if
	// it may go by itself.
	KeptFor string

	// Target is what the target falls to at At if no request comes before. At is
	// zero if that is not known, or does not happen.
	Target int
	At     time.Time
}

// prospectSteps is how many decisions ahead are looked at.
const prospectSteps = 64

// Prospect asks the policy what it would decide now, and later.
func (l *Loop) Prospect() Prospect {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.current() == nil || l.suspended != nil || l.retired:
		return Prospect{}
	case l.asleep:
		return Prospect{Reason: sleepReason}
	}
	now, stats := time.Now(), l.reserver.Stats()
	in, past := l.demandInputs(now, stats), l.recalled()
	coming := l.comingUp(stats)
	if coming {
		in.IdleSince, in.Running = now, max(in.Running, 1)
	}
	in.Peak = in.Demand
	l.measuredInputs(&in, past, stats)
	a, memory := l.foreseen(in, past.memory, stats)
	p := Prospect{}
	if by := l.companyNow(); a.keeps(by) {
		p.KeptFor = by
	}
	if a.Target == l.target && (l.done != nil || !a.FloorChange.IsZero()) {
		p.Reason = a.Reason
	}
	if coming || in.Demand > 0 || a.Target == 0 || a.Target != l.target || !l.mayForesee() {
		return p
	}
	for range prospectSteps {
		if !a.Recheck.After(in.Now) {
			return p
		}
		in.Now = a.Recheck
		if a, memory = l.foreseen(in, memory, stats); a.Target != l.target {
			if a.Target < l.target {
				p.Target, p.At = a.Target, in.Now
			}
			return p
		}
	}
	return p
}

// advised is an advice, and what the policy alone has wanted.
type advised struct {
	scaler.Advice
	alone int
}

// keeps reports whether only the services by are the reason for an instance.
func (a advised) keeps(by string) bool { return by != "" && a.alone == 0 }

// foreseen is what advise would return, for inputs of any time, and notes
// nothing. The lock is held.
func (l *Loop) foreseen(in scaler.Inputs, m scaler.Memory, stats reserver.Stats) (advised, scaler.Memory) {
	a, memory := l.settings.Policy.Target(in, m)
	a.Target = max(in.Min, min(a.Target, in.Max))
	var later recheck
	a = l.inSession(a, in, &later)
	alone := a.Target
	return advised{l.current().held(l.inCompany(a, l.companyNow(), stats)), alone}, memory
}

// mayForesee reports whether only the policy and the time decide when instances
// go: no session and no work in the background that keeps one, and no metric
// that changes meanwhile. The lock is held.
func (l *Loop) mayForesee() bool {
	if _, metered := scaler.Decider(l.settings.Policy).(scaler.Metered); metered || l.settings.Busy != (Busy{}) {
		return false
	}
	for _, r := range l.revisions {
		if _, _, until := bySession(r.withSlots()); r.hold != nil || !until.IsZero() {
			return false
		}
	}
	return true
}
