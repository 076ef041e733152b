package main

import (
	"math"
	"time"
)

// waits is how long requests waited: a histogram whose bins are a twentieth
// wide, from a millisecond on, and what has to be exact. Those of several
// traces can be put together.
type waits struct {
	bins    [waitBins]uint32
	count   int
	sum     time.Duration
	longest time.Duration
}

const (
	waitBins  = 420
	waitFirst = time.Millisecond
	waitWidth = 1.05
)

func (w *waits) observe(d time.Duration) {
	k := 0
	if d >= waitFirst {
		k = min(1+int(math.Log(float64(d)/float64(waitFirst))/math.Log(waitWidth)), waitBins-1)
	}
	w.bins[k]++
	w.count++
	w.sum += d
	w.longest = max(w.longest, d)
}

func (w *waits) add(o *waits) {
	for k, n := range o.bins {
		w.bins[k] += n
	}
	w.count += o.count
	w.sum += o.sum
	w.longest = max(w.longest, o.longest)
}

// quantile returns the wait that the part q of the requests does not exceed, to
// a twentieth.
func (w *waits) quantile(q float64) time.Duration {
	seen := 0.0
	for k, n := range w.bins {
		seen += float64(n)
		switch {
		case seen < q*float64(w.count) || n == 0:
		case k == 0:
			return 0
		default:
			return min(w.longest, time.Duration(float64(waitFirst)*math.Pow(waitWidth, float64(k)-0.5)))
		}
	}
	return w.longest
}

// mean is the mean wait in seconds.
func (w *waits) mean() float64 {
	if w.count == 0 {
		return 0
	}
	return w.sum.Seconds() / float64(w.count)
}
