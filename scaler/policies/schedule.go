package policies

import (
	"fmt"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Schedule keeps a floor at certain hours, beside any policy. The higher of
// two floors holds.
type Schedule struct {
	// Policy decides; the floor raises its Inputs.Min.
	scaler.Policy

	// Windows are when which floor holds.
	Windows []Window
}

// A Window is a span of the day on some days of the week, by the clocks of a
// place. Where the clocks are put forward or back it begins and ends with them:
// an hour that comes twice counts twice, and one that is left out not at all.
type Window struct {
	// Days are the days on which it begins; true for time.Sunday first.
	Days [7]bool

	// From and To are the times of the day. If To is not after From, the window
	// ends on the next day. 24 hours are the end of the day.
	From, To time.Duration

	// Zone is the place.
	Zone *time.Location

	// Min is the floor.
	Min int
}

const dayLong = 24 * time.Hour

// clock is what the clocks of the zone show: the day of the week and the time.
func clock(t time.Time) (time.Weekday, time.Duration) {
	h, m, s := t.Clock()
	return t.Weekday(), time.Duration(h)*time.Hour + time.Duration(m)*time.Minute +
		time.Duration(s)*time.Second + time.Duration(t.Nanosecond())
}

// Holds says whether t is in the window.
func (w Window) Holds(t time.Time) bool {
	day, at := clock(t.In(w.Zone))
	if w.From < w.To {
		return w.Days[day] && at >= w.From && at < w.To
	}
	// Over midnight: it began today, or yesterday.
	return w.Days[day] && at >= w.From || w.Days[(day+6)%7] && at < w.To
}

// floor is the highest floor that holds at t.
func (p Schedule) floor(t time.Time) (floor int) {
	for _, w := range p.Windows {
		if w.Min > floor && w.Holds(t) {
			floor = w.Min
		}
	}
	return floor
}

// NextChange returns when the floor changes, and what it is then; a zero time
// if it never does.
func (p Schedule) NextChange(now time.Time) (at time.Time, floor int) {
	floor = p.floor(now)
	next := floor
	try := func(t time.Time) {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			if f := p.floor(t); f != floor {
				at, next = t, f
			}
		}
	}
	for _, w := range p.Windows {
		// A floor can only change where a window begins or ends, or where the
		// clocks are changed.
		if _, change := now.In(w.Zone).ZoneBounds(); !change.IsZero() {
			try(change)
		}
		y, m, d := now.In(w.Zone).Date()
		for k := -1; k <= 8; k++ {
			day := time.Date(y, m, d+k, 12, 0, 0, 0, w.Zone)
			for _, edge := range []time.Duration{w.From, w.To} {
				// What the clocks show can come under the offset before a
				// change or under the one after it.
				for _, near := range []time.Time{day.Add(-dayLong), day.Add(dayLong)} {
					_, offset := near.In(w.Zone).Zone()
					yy, mm, dd := day.Date()
					try(time.Date(yy, mm, dd, 0, 0, 0, 0, time.UTC).Add(edge - time.Duration(offset)*time.Second))
				}
			}
		}
	}
	return at, next
}

// Inner implements scaler.Wrapper.
func (p Schedule) Inner() scaler.Policy { return p.Policy }

// Target implements scaler.Policy.
func (p Schedule) Target(in scaler.Inputs, m scaler.Memory) (scaler.Advice, scaler.Memory) {
	least := in.Min
	floor := min(p.floor(in.Now), in.Max)
	in.Min = max(in.Min, floor)
	a, m := p.Policy.Target(in, m)
	at, next := p.NextChange(in.Now)
	if !at.IsZero() && (a.Recheck.IsZero() || at.Before(a.Recheck)) {
		a.Recheck = at
	}
	a.Floor, a.FloorChange, a.NextFloor = floor, at, min(next, in.Max)
	if floor > least && a.Target <= floor && in.Demand == 0 {
		a.Reason = fmt.Sprintf("the schedule keeps %d", floor)
		if !at.IsZero() {
			a.Reason += " until " + at.In(p.Windows[0].Zone).Format("Mon 15:04 MST")
		}
	}
	return a, m
}

var (
	_ scaler.Policy  = Schedule{}
	_ scaler.Wrapper = Schedule{}
)
