package main

import "time"

// oracle returns what a policy could do that knows the future: no request
// waits, an instance bridges a pause if that costs no more than starting it
// again, and otherwise it is started just in time.
func oracle(t Trace, startTime time.Duration) Result {
	r := Result{Waits: new(waits), Length: t.Length}
	for range t.Requests {
		r.Waits.observe(0)
	}
	var (
		inside, level int
		freeSince     []time.Duration // for each level, since when it is not needed
		neededSince   []time.Duration
	)
	for _, s := range t.steps() {
		inside += s.change
		now := need(inside, t.Concurrency)
		for ; level < now; level++ {
			if level == len(freeSince) {
				freeSince, neededSince = append(freeSince, -1), append(neededSince, 0)
			}
			gap := s.at - freeSince[level]
			if freeSince[level] < 0 || gap > startTime {
				gap = startTime
				r.Starts++
			} else {
				r.Idle += gap
			}
			r.Instances += gap
			neededSince[level] = s.at
			r.Peak = max(r.Peak, level+1)
		}
		for ; level > now; level-- {
			freeSince[level-1] = s.at
			r.Instances += s.at - neededSince[level-1]
		}
	}
	return r
}
