package control

import (
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Outlook is what the policy says of the present target and of what comes. It
// can change while the target stays the same.
type Outlook struct {
	// Reason says why there are so many instances.
	Reason string

	// Predicted is how many of them are there because of what the policy
	// expects.
	Predicted int

	// Floor is the least number by the schedule, and NextFloor the one from
	// FloorChange on. The time is zero if the floor never changes.
	Floor, NextFloor int
	FloorChange      time.Time
}

// foresee takes note of an advice. A service that was never asked for has
// nothing to say, unless it has a schedule. The lock is held.
func (l *Loop) foresee(a scaler.Advice) {
	if l.done == nil && a.FloorChange.IsZero() {
		return
	}
	l.record().outlook = Outlook{
		Reason: a.Reason, Predicted: a.Predicted, Floor: a.Floor, NextFloor: a.NextFloor, FloorChange: a.FloorChange,
	}
}

// countIdle sums up how long instances are idle. The load is spread, so one is
// idle only if fewer requests are inside than instances are ready. What changes
// between two decisions is seen at the second. The lock is held.
func (l *Loop) countIdle(now time.Time, stats reserver.Stats) {
	if l.done == nil {
		return
	}
	h := l.done
	if h.idle > 0 {
		h.idleTime += time.Duration(h.idle) * max(0, now.Sub(h.idleTo))
	}
	h.idle, h.idleTo = max(0, stats.Open-stats.InUse), now
}

// toSleep takes note that the target became 0.
func (h *history) toSleep(now time.Time) { h.asleepFrom = now }

// wakes counts a cold start that would not have been one, had the last instance
// stayed for what the start is worth.
func (h *history) wakes(now time.Time, worth time.Duration) {
	if !h.asleepFrom.IsZero() && (worth <= 0 || now.Sub(h.asleepFrom) <= worth) {
		h.avoidable++
	}
}
