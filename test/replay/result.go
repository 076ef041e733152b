package main

import "time"

// A Result is what a policy did with a trace.
type Result struct {
	Waits *waits // of all requests
	Cold  int    // requests that waited for a start

	// Instances is the time that instances existed, summed up, from the order
	// to start to the end. Idle is how much of it they were ready and had no
	// request inside.
	Instances, Idle time.Duration

	Starts, Peak int
	Turns        int // changes of direction of the target
	CrowdTurns   int // those of them above one instance
	Length       time.Duration
}

// result sums up. Instances that still exist count until now.
func (w *world) result() Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := Result{Waits: &w.waits, Cold: w.cold, Peak: w.peak, Length: time.Since(w.began)}
	all, above := 0, 0
	for _, i := range w.instances {
		i.died = time.Now()
		w.ended = append(w.ended, i)
	}
	for _, i := range w.ended {
		r.Starts++
		r.Instances += i.died.Sub(i.born)
		if i.inside > 0 {
			i.busy += i.died.Sub(i.busySince)
		}
		if !i.ready.IsZero() {
			r.Idle += i.died.Sub(i.ready) - i.busy
		}
	}
	for _, d := range w.decisions {
		all, above = turn(&r.Turns, all, d.To-d.From), turn(&r.CrowdTurns, above, max(d.To, 1)-max(d.From, 1))
	}
	return r
}

// turn counts a change against the direction so far, and returns the new one.
func turn(turns *int, direction, change int) int {
	switch {
	case change == 0:
		return direction
	case change > 0:
		change = 1
	default:
		change = -1
	}
	if direction == -change {
		*turns++
	}
	return change
}

// cold is the part of the requests that waited for a start.
func (r Result) cold() float64 { return float64(r.Cold) / float64(max(r.Waits.count, 1)) }

// together sums up results.
func together(all []Result) Result {
	sum := Result{Waits: new(waits)}
	for _, r := range all {
		sum.Waits.add(r.Waits)
		sum.Cold += r.Cold
		sum.Instances += r.Instances
		sum.Idle += r.Idle
		sum.Starts += r.Starts
		sum.Turns += r.Turns
		sum.CrowdTurns += r.CrowdTurns
		sum.Length += r.Length
		sum.Peak = max(sum.Peak, r.Peak)
	}
	return sum
}
