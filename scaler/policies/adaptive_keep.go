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
			if v.on {
				a.Predicted = max(a.Predicted, min(high, n.Max))
			}
			if low == 1 && n.Demand == 0 && v.stay.from > 0 {
				a.ExpectedFrom, a.ExpectedTo = f.Since.Add(seconds(v.stay.from)), f.Since.Add(seconds(v.stay.to))
			}
			if v.on && high > a.Target {
				a.Target, why = high, v
			} else if low == 1 && !v.on {
				why = v
			}
			low = high + 1
		}
	}
	if a.Target > needed && more == 0 || a.Target == 0 {
		a.Reason = why.words()
	}
	if a.Target <= n.Min {
		a.Target = n.Min
		if n.Demand == 0 && n.Min > 0 {
			a.Reason = minReason(n.Inputs)
		}
	}
	a.Target = min(a.Target, n.Max)
	a.Idle = n.Demand == 0
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
}

// thrift is the part of the worth of a cold start that staying may cost. The
// past promises more than it keeps.
const thrift = 0.6

// level judges a level that has not been needed for so long.
func (m *adaptiveMemory) level(n now, level int, elapsed float64) verdict {
	v := verdict{elapsed: elapsed}
	if level == 1 && n.IdleTimeout <= 0 {
		v.on, v.rest, v.stay.to = n.Running > 0, math.Inf(1), math.Inf(1)
		return v
	}
	cost := thrift * n.worth * float64(min(m.crowd(), crowdMost))
	if level > 1 {
		cost = min(thrift*n.worth, n.start+thrift*n.worth*min(1, n.service/n.start))
	}
	g := m.Gaps[min(level, levels)-1]
	var until float64
	v.on, until, v.stay = at(g.plan(n.start, cost, !n.NoPrewarm && level == 1), elapsed, n.start)
	if level == 1 {
		v.on, until = n.bounded(v.on, until, elapsed)
	} else if least := min(max(3*n.start, stayLeast), stayMost); elapsed < least && g.within(least) > 0.3 {
		v.on, until = true, max(until, least)
	}
	v.rest = until - elapsed
	return v
}

// bounded is a stay of the last instance within MinIdle and MaxIdle.
func (n now) bounded(on bool, until, elapsed float64) (bool, float64) {
	least, most := n.MinIdle.Seconds(), n.MaxIdle.Seconds()
	switch {
	case elapsed < least:
		if !on || until < least {
			return true, least
		}
	case most > 0 && on && elapsed >= most:
		return false, until
	}
	if most > 0 && on && elapsed < most {
		until = min(until, most)
	}
	return on, until
}

// words says why.
func (v verdict) words() string {
	switch {
	case v.on && math.IsInf(v.stay.to, 1):
		return "idle_timeout is off"
	case v.on && v.stay.from > 0:
		return "requests come " + rough(v.stay.from) + " to " + rough(v.stay.to) + " apart: ready before the next"
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
