package policies

import (
	"fmt"
	"math"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// keep returns how many instances there shall be, so many more than there are
// among them, and until when that holds.
func (m *adaptiveMemory) keep(n now, more int) (a scaler.Advice, until time.Time) {
	needed := m.Busy
	if n.Waiting > 0 {
		// What is there is not stopped while requests wait, but demand may be
		// less than that by now.
		needed = max(needed, min(n.Running, n.need(n.Demand)))
	}
	a.Target, a.Reason = needed, fmt.Sprintf("%d in use, %d waiting", n.Demand-n.Waiting, n.Waiting)
	if more > 0 {
		a.Target = n.Running + more
		m.use(n, a.Target) // they are held as if they had been used
	}
	first := math.Inf(1)
	below := m.Busy
	var why verdict
	unused := m.unused(n)
	asleep := false // the first one is not kept, and so no other one is
	for k := range m.Free {
		f := &m.Free[k]
		elapsed := max(0, n.Now.Sub(f.Since).Seconds())
		low := below + 1
		below = f.Level
		// The levels of a step that share what is known get one look.
		for low <= f.Level {
			high := low
			if low >= levels {
				high = f.Level
			}
			v := m.level(n, low, elapsed)
			first = min(first, v.rest)
			there := high
			if n.Demand == 0 && v.stay.from == 0 {
				// An idle instance may stay. One that is gone is not replaced.
				there = min(high, n.Running)
			}
			if v.on && !asleep {
				a.Predicted = max(a.Predicted, min(there, n.Max))
			}
			if low == 1 && n.Demand == 0 && v.stay.from > 0 {
				a.ExpectedFrom, a.ExpectedTo = f.Since.Add(seconds(v.stay.from)), f.Since.Add(seconds(v.stay.to))
			}
			switch {
			case low == 1 && !v.on:
				why, asleep = v, !unused.on
			case v.on && there > a.Target && !asleep:
				a.Target, why = there, v
			}
			low = high + 1
		}
	}
	if unused.on && a.Target == 0 {
		a.Target, why = 1, unused
	}
	if unused.on {
		first = min(first, unused.rest)
	}
	if m.ahead = n.Demand == 0 && (m.ahead && n.Running > 0 || n.Running == 0 && a.Target > 0); m.ahead {
		m.aheadAt = n.IdleSince
	}
	if a.Target > needed && more == 0 || a.Target == 0 {
		a.Reason = why.words(n)
	}
	a.Idle = a.Target == 0
	if a.Target <= n.Min {
		a.Target = n.Min
		if n.Demand == 0 && n.Min > 0 {
			a.Reason = minReason(n.Inputs)
		}
	}
	a.Target = min(a.Target, n.Max)
	if !math.IsInf(first, 1) {
		until = n.Now.Add(seconds(first) + time.Millisecond)
	}
	return a, until
}

func minReason(in scaler.Inputs) string { return fmt.Sprintf("min is %d", in.Min) }

// stayLeast and stayMost bound how long further instances stay for the time alone that it
// takes to start one, in seconds: use that goes up and down would start and
// stop them again and again.
const stayLeast, stayMost = 20, 60

// A verdict says whether an instance of a level that is not needed is to be
// there, and for how long that holds, in seconds.
type verdict struct {
	on            bool
	rest, elapsed float64
	stay          stay // what it is, or was, there for
	plain         bool // it is there for the idle timeout, whatever is known
}

// thrift is the part of the worth of a cold start that staying may cost. The
// past promises more than it keeps.
const thrift = 0.6

// known is how many pauses it takes to judge by them. Until then the last
// instance stays for the idle timeout, as with Queue.
const known = 2

// level judges a level that has not been needed for so long.
func (m *adaptiveMemory) level(n now, level int, elapsed float64) verdict {
	g := m.Gaps[min(level, levels)-1]
	if level == 1 && (n.IdleTimeout <= 0 || g == nil || g.Reached[0] < known) {
		return n.plainly(elapsed)
	}
	cost := thrift * n.worth * float64(min(m.crowd(), crowdMost))
	if level > 1 {
		cost = min(thrift*n.worth, n.start+thrift*n.worth*min(1, n.service/n.start))
	}
	v := verdict{elapsed: elapsed}
	var until float64
	v.on, until, v.stay = at(g.plan(n.start, cost, !n.NoPrewarm && level == 1), elapsed, n.start)
	if level == 1 {
		return n.bounded(v, until)
	}
	if least := min(max(3*n.start, stayLeast), stayMost); elapsed < least && g.within(least) > 0.3 {
		v.on, until = true, max(until, least)
	}
	v.rest = until - elapsed
	return v
}

// unused judges an instance that no request has used: the one that it was
// started for has gone, or an operator, another program or a Caddy before this
// one has started it. It stays for the idle timeout, as with Queue. What was
// started ahead has a time of its own.
func (m *adaptiveMemory) unused(n now) verdict {
	if n.Demand > 0 || n.Running == 0 || m.ahead || !n.IdleSince.After(m.aheadAt) || len(m.Free) > 0 && !n.IdleSince.After(m.Free[0].Since) {
		return verdict{}
	}
	return n.plainly(max(0, n.Now.Sub(n.IdleSince).Seconds()))
}

// plainly is a stay of the last instance for the idle timeout.
func (n now) plainly(elapsed float64) verdict {
	v := verdict{plain: true, elapsed: elapsed, stay: stay{to: n.IdleTimeout.Seconds()}}
	if n.IdleTimeout <= 0 {
		v.on, v.rest, v.stay.to = n.Running > 0, math.Inf(1), math.Inf(1)
		return v
	}
	if v.on = elapsed < v.stay.to; !v.on {
		return n.bounded(v, math.Inf(1))
	}
	return n.bounded(v, v.stay.to)
}

// bounded is a stay of the last instance, which would change after so many
// seconds, within MinIdle and MaxIdle.
func (n now) bounded(v verdict, until float64) verdict {
	// Pauses below a second are not looked at.
	least := max(n.MinIdle, min(n.IdleTimeout, n.maxIdle(), look)).Seconds()
	end := v.stay.from + n.maxIdle().Seconds()
	switch {
	case v.elapsed < least && (!v.on || until < least):
		v.on, until, v.stay = true, least, stay{to: least}
	case v.on && v.elapsed >= end:
		v.on, until = false, v.stay.to
	case v.on:
		until = min(until, end)
		v.stay.to = min(v.stay.to, end)
	}
	v.rest = until - v.elapsed
	return v
}

// maxIdleTimes is how many times the idle timeout MaxIdle is where it is not
// given.
const maxIdleTimes = 4

// LongestIdle is how long the last instance stays at most with that idle
// timeout: MaxIdle, or what holds without it, and never less than MinIdle.
func (p Adaptive) LongestIdle(idleTimeout time.Duration) time.Duration {
	if p.MaxIdle > 0 {
		return p.MaxIdle
	}
	return max(p.MinIdle, maxIdleTimes*min(idleTimeout, scaler.MaxDuration/maxIdleTimes))
}

func (n now) maxIdle() time.Duration { return n.LongestIdle(n.IdleTimeout) }

// words says why.
func (v verdict) words(n now) string {
	switch {
	case v.on && math.IsInf(v.stay.to, 1):
		return "idle_timeout is off"
	case v.on && v.stay.from > 0:
		return "requests come " + rough(v.stay.from) + " to " + rough(v.stay.to) + " apart: ready before the next"
	case v.on && v.plain:
		return "kept for up to " + rough(v.stay.to) + " without a request"
	case v.on && v.stay.to > n.IdleTimeout.Seconds():
		return "kept for up to " + rough(v.stay.to) + " without a request, longer than idle_timeout: requests often come after such a pause"
	case v.on:
		return "kept for up to " + rough(v.stay.to) + " without a request, as a start is worth it"
	}
	return "no request for " + rough(v.elapsed) + ", and none is likely soon"
}

// rough writes seconds with two units at most.
func rough(s float64) string {
	d := seconds(s)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	case d >= time.Hour:
		return d.Round(time.Minute).String()
	case d >= time.Second:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}
