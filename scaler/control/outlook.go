package control

import (
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Outlook is what the policy says of the present target and of what comes. It
// can change while the target stays the same.
//
// It is an event whenever anything but the reason has changed.
type Outlook struct {
	// Reason says why there are so many instances.
	Reason string `json:",omitzero"`

	// Needed is how many instances the requests inside and waiting need, and
	// NeededSince since when. NeededPeak is the most that they needed since the
	// outlook before.
	Needed, NeededPeak int       `json:",omitzero"`
	NeededSince        time.Time `json:",omitzero"`

	// Predicted is how many of them are there because of what the policy
	// expects.
	Predicted int `json:",omitzero"`

	// ExpectedFrom and ExpectedTo are the span of time in which the policy
	// expects the next request, if it starts an instance ahead of it.
	ExpectedFrom, ExpectedTo time.Time `json:",omitzero"`

	// Floor is the least number by the schedule, and NextFloor the one from
	// FloorChange on. The time is zero if the floor never changes.
	Floor, NextFloor int       `json:",omitzero"`
	FloorChange      time.Time `json:",omitzero"`
}

// foresee takes note of an advice. A service that was never asked for has
// nothing to say, unless it has a schedule. The lock is held.
func (l *Loop) foresee(a scaler.Advice, in scaler.Inputs) {
	if l.done == nil && a.FloorChange.IsZero() {
		return
	}
	l.expect(in, Outlook{
		Reason: a.Reason, Predicted: a.Predicted, ExpectedFrom: a.ExpectedFrom, ExpectedTo: a.ExpectedTo,
		Floor: a.Floor, NextFloor: a.NextFloor, FloorChange: a.FloorChange,
	})
}

// expectNothing takes note that the policy was not asked: nothing is predicted,
// whatever it said before. The lock is held.
func (l *Loop) expectNothing(in scaler.Inputs) {
	if l.done == nil {
		return
	}
	o := l.done.outlook
	o.Predicted, o.ExpectedFrom, o.ExpectedTo = 0, time.Time{}, time.Time{}
	l.expect(in, o)
}

// expect keeps an outlook with the need of now, and tells of it if it is new.
// The lock is held.
func (l *Loop) expect(in scaler.Inputs, o Outlook) {
	h := l.record()
	was := h.outlook
	o.Needed, o.NeededPeak = instancesFor(in.Demand, in.Concurrency), instancesFor(in.Peak, in.Concurrency)
	o.NeededSince = was.NeededSince
	if o.Needed != was.Needed || o.NeededPeak > was.Needed {
		o.NeededSince = in.Now
		if in.Demand == 0 && in.IdleSince.Before(in.Now) && in.IdleSince.After(was.NeededSince) {
			o.NeededSince = in.IdleSince // no decision was needed then
		}
	}
	h.outlook = o
	// What was told as the peak before is over.
	was.Reason, was.NeededPeak = o.Reason, was.Needed
	if o != was {
		l.observer.Observe(o)
	}
}

// instancesFor is how many instances so many requests need if each takes so many
// at a time; 0 is without a limit.
func instancesFor(demand, concurrency int) int {
	switch {
	case demand <= 0:
		return 0
	case concurrency <= 0:
		return 1
	}
	return (demand-1)/concurrency + 1
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
