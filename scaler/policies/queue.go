package policies

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Queue is the default policy. It goes up at once to what the requests in
// use and waiting need, and down to the highest need of the last DownWindow;
// before the idle timeout one instance stays, after it Min.
type Queue struct {
	// Utilization is the part of the slots that shall be in use. Default 1.
	Utilization float64

	// DownWindow is how long a need is remembered. Default 1m.
	DownWindow time.Duration

	// TargetWait is how long requests may wait: while they wait less than
	// that, no further instance is wanted for them. Default (0): not at all.
	TargetWait time.Duration
}

// Window implements Policy.
func (q Queue) Window() time.Duration {
	if q.DownWindow == 0 {
		return time.Minute
	}
	return min(max(q.DownWindow, scaler.MinDuration), scaler.MaxDuration)
}

// Target implements Policy.
func (q Queue) Target(in scaler.Inputs, _ scaler.Memory) (scaler.Advice, scaler.Memory) {
	need := q.need(in.Demand, in.Concurrency)
	patient := q.TargetWait > 0 && in.Waiting > 0 && in.Concurrency > 0
	if patient {
		need = min(need, keepsWaitBelow(in, q.TargetWait, q.perInstance(in.Concurrency)))
	}
	need = min(need, in.Max)
	floor := in.Min
	if in.Running > 0 {
		floor = max(floor, 1)
	}

	idle := in.Demand == 0 && in.IdleTimeout > 0
	idleAt := in.IdleSince.Add(in.IdleTimeout)
	if idle && !in.Now.Before(idleAt) {
		return scaler.Advice{Target: in.Min, Idle: true, Mark: q.mark(in.Min, in), Reason: fmt.Sprintf("idle for %v", in.IdleTimeout)}, nil
	}

	// The past keeps instances that run, and starts none.
	var high int
	var highAt time.Time
	if in.Running > 0 {
		for _, s := range in.History {
			if s.Reset {
				high, highAt = 0, time.Time{}
			}
			if n := max(q.need(s.Demand, in.Concurrency), s.Instances); n >= high && in.Now.Sub(s.At) < q.Window() {
				high, highAt = n, s.At
			}
		}
		high = min(high, in.Max)
		if q.TargetWait > 0 {
			// The demand of the past was allowed to wait.
			high = min(high, in.Running)
		}
	}

	a := scaler.Advice{Target: max(need, high, floor)}
	a.Mark = q.mark(a.Target, in)
	switch {
	case a.Target == need && need > in.Min:
		a.Reason = fmt.Sprintf("%d in use, %d waiting", in.Demand-in.Waiting, in.Waiting)
	case a.Target == floor && floor == in.Min:
		a.Reason = fmt.Sprintf("min is %d", in.Min)
	case a.Target == floor:
		a.Reason = "one stays until idle_timeout"
	default:
		a.Reason = "highest demand of the last " + lastWords(q.Window()) + " (down_window)"
	}

	if patient && a.Target < in.Max {
		a.Mark = in.Demand // the next one may have to wait for too long
	}

	recheck := func(t time.Time) {
		if a.Recheck.IsZero() || t.Before(a.Recheck) {
			a.Recheck = t
		}
	}
	if patient && a.Target < in.Max && !in.OldestWait.IsZero() && in.Now.Before(in.OldestWait.Add(q.TargetWait)) {
		recheck(in.OldestWait.Add(q.TargetWait))
	}
	switch {
	case a.Target > max(need, floor):
		recheck(highAt.Add(q.Window()))
	case a.Target > floor:
		// Demand may fall without a word: look again in a while.
		recheck(in.Now.Add(q.Window() / scaler.HistoryParts))
	}
	if in.IdleTimeout > 0 && floor > in.Min || in.Min < a.Target && in.IdleTimeout > 0 {
		if idle {
			recheck(idleAt)
		} else {
			// Not before that can it have been idle for so long.
			recheck(in.Now.Add(in.IdleTimeout))
		}
	}
	return a, nil
}

// lastWords writes a duration as after "the last".
func lastWords(d time.Duration) string {
	switch d {
	case time.Second:
		return "second"
	case time.Minute:
		return "minute"
	case time.Hour:
		return "hour"
	}
	words := rough(d.Seconds())
	if minutes, even := strings.CutSuffix(words, "m0s"); even {
		return minutes + "m"
	}
	return words
}

// need is the number of instances that so many requests need.
func (q Queue) need(demand, concurrency int) int {
	switch {
	case demand <= 0:
		return 0
	case concurrency <= 0:
		return 1
	}
	per := q.perInstance(concurrency)
	n := math.Ceil(float64(demand) / per)
	// The quotient may be off by a rounding: what counts is what n instances
	// are enough for.
	switch {
	case math.Floor((n-1)*per) >= float64(demand):
		n--
	case math.Floor(n*per) < float64(demand):
		n++
	}
	return int(min(n, noNeed))
}

// noNeed is a number of instances that no service may have.
const noNeed = 1 << 30

// perInstance is how many requests one instance is to have inside. It is
// rounded to six places: 100 slots of which 0.29 are to be in use are 29, not
// 28.999999999999996.
func (q Queue) perInstance(concurrency int) float64 {
	per := float64(min(concurrency, scaler.MaxConcurrency)) * q.utilization()
	return max(math.Round(per*1e6)/1e6, scaler.MinUtilization)
}

// mark is the most demand that target instances are enough for.
func (q Queue) mark(target int, in scaler.Inputs) int {
	if target >= in.Max || target > 0 && in.Concurrency <= 0 {
		return scaler.NoMark
	}
	return int(math.Floor(float64(min(target, noNeed)) * q.perInstance(in.Concurrency)))
}

func (q Queue) utilization() float64 {
	if !(q.Utilization > 0) {
		return 1
	}
	return min(max(q.Utilization, scaler.MinUtilization), 1)
}
