package scaler

import (
	"fmt"
	"math"
	"time"
)

// A Policy turns demand into a number of instances. It is a pure function of
// its inputs: it keeps nothing between calls, knows no clock, and is called
// under a lock, so it returns at once.
//
// Policies are guest modules of Caddy in the namespace usher.policies.
type Policy interface {
	// Target says how many instances there should be now, between
	// Inputs.Min and Inputs.Max.
	Target(Inputs) Advice

	// Window returns how far back Inputs.History has to reach.
	Window() time.Duration
}

// Inputs are what a policy decides by.
type Inputs struct {
	// Now is the time of the decision.
	Now time.Time

	// Min and Max bound the target.
	Min, Max int

	// Concurrency is the number of slots of one instance; 0 is unlimited.
	Concurrency int

	// Demand is the number of requests that are a reason to have instances,
	// of which Waiting wait, in the line or for their turn to come back.
	Demand, Waiting int

	// Running is the number of instances that exist or are being started.
	Running int

	// IdleSince is when Demand became 0; meaningless while it is not.
	IdleSince time.Time

	// IdleTimeout is how long to stay without demand; 0 is for ever.
	IdleTimeout time.Duration

	// History has the highest demand of successive spans of time, oldest
	// first, back to Policy.Window.
	History []Sample
}

// A Sample is what was asked of a service in the span of time that ended At.
type Sample struct {
	// At is the end of the span, Demand the highest demand within it.
	At     time.Time
	Demand int

	// Instances is a number of instances that somebody else asked for: an
	// operator, or another program that scales the same thing.
	Instances int
}

// NoMark is a mark that no demand exceeds.
const NoMark = math.MaxInt

// Advice is a policy's answer.
type Advice struct {
	// Target is the number of instances that there should be.
	Target int

	// Reason says why, in a few words for people.
	Reason string

	// Idle is true if the target is low because IdleTimeout has passed. It
	// is void if a request comes before it is carried out.
	Idle bool

	// Mark is the demand above which the answer changes at once.
	Mark int

	// Recheck is when time alone can change the answer; zero if it cannot.
	Recheck time.Time
}

// historyParts is into how many spans a policy's window is divided. Demand
// that falls is noticed with a delay of at most one of them.
const historyParts = 20

// Queue is the default policy. It goes up at once to what the requests in
// use and waiting need, and down to the highest need of the last DownWindow;
// before the idle timeout one instance stays, after it Min.
type Queue struct {
	// Utilization is the part of the slots that shall be in use. Default 1.
	Utilization float64

	// DownWindow is how long a need is remembered. Default 1m.
	DownWindow time.Duration
}

// Window implements Policy.
func (q Queue) Window() time.Duration {
	if q.DownWindow == 0 {
		return time.Minute
	}
	return q.DownWindow
}

// Target implements Policy.
func (q Queue) Target(in Inputs) Advice {
	need := min(q.need(in.Demand, in.Concurrency), in.Max)
	floor := in.Min
	if in.Running > 0 {
		floor = max(floor, 1)
	}

	idle := in.Demand == 0 && in.IdleTimeout > 0
	idleAt := in.IdleSince.Add(in.IdleTimeout)
	if idle && !in.Now.Before(idleAt) {
		return Advice{Target: in.Min, Idle: true, Mark: q.mark(in.Min, in), Reason: fmt.Sprintf("idle for %v", in.IdleTimeout)}
	}

	// What nobody runs for is not kept: without an instance the past is of
	// no interest.
	var high int
	var highAt time.Time
	if in.Running > 0 {
		for _, s := range in.History {
			if n := max(q.need(s.Demand, in.Concurrency), s.Instances); n >= high && in.Now.Sub(s.At) < q.Window() {
				high, highAt = n, s.At
			}
		}
		high = min(high, in.Max)
	}

	a := Advice{Target: max(need, high, floor)}
	a.Mark = q.mark(a.Target, in)
	switch {
	case a.Target == need && need > in.Min:
		a.Reason = fmt.Sprintf("%d in use, %d waiting", in.Demand-in.Waiting, in.Waiting)
	case a.Target == floor && floor == in.Min:
		a.Reason = fmt.Sprintf("min is %d", in.Min)
	case a.Target == floor:
		a.Reason = "one stays until idle_timeout"
	default:
		a.Reason = fmt.Sprintf("the most of the last %v", q.Window())
	}

	recheck := func(t time.Time) {
		if a.Recheck.IsZero() || t.Before(a.Recheck) {
			a.Recheck = t
		}
	}
	switch {
	case a.Target > max(need, floor):
		recheck(highAt.Add(q.Window()))
	case a.Target > floor:
		// Demand may fall without a word: look again in a while.
		recheck(in.Now.Add(q.Window() / historyParts))
	}
	if in.IdleTimeout > 0 && floor > in.Min || in.Min < a.Target && in.IdleTimeout > 0 {
		if idle {
			recheck(idleAt)
		} else {
			// Not before that can it have been idle for so long.
			recheck(in.Now.Add(in.IdleTimeout))
		}
	}
	return a
}

// need is the number of instances that so many requests need.
func (q Queue) need(demand, concurrency int) int {
	switch {
	case demand <= 0:
		return 0
	case concurrency <= 0:
		return 1
	}
	return int(math.Ceil(float64(demand) / (float64(concurrency) * q.utilization())))
}

// mark is the most demand that target instances are enough for.
func (q Queue) mark(target int, in Inputs) int {
	if target >= in.Max || target > 0 && in.Concurrency <= 0 {
		return NoMark
	}
	m := int(float64(target) * float64(in.Concurrency) * q.utilization())
	// Rounding must not make it contradict need.
	for q.need(m, in.Concurrency) > target {
		m--
	}
	for q.need(m+1, in.Concurrency) <= target {
		m++
	}
	return m
}

func (q Queue) utilization() float64 {
	if q.Utilization <= 0 {
		return 1
	}
	return q.Utilization
}
