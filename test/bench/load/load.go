// Package load makes the load of the benchmark: requests at a constant rate,
// whatever the answers do (an open loop), clients that ask again as soon as
// they are answered (a closed loop), and requests that are only held.
//
// It keeps every single latency. A run has at most some hundred thousand of
// them, so the quantiles are exact, and there is no histogram to tune.
package load

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An Asker sends one request and reads its answer, whole. It belongs to one
// goroutine at a time.
type Asker interface {
	Ask() error
	Close()
}

// A Result is what a run has measured.
type Result struct {
	Latencies []time.Duration // sorted
	Failed    int
	Err       error // the first failure
	Took      time.Duration
}

// Rate is how many requests were answered in a second.
func (r Result) Rate() float64 { return float64(len(r.Latencies)) / r.Took.Seconds() }

// Quantile returns the latency that the part q of the requests did not
// exceed.
func (r Result) Quantile(q float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[min(int(q*float64(len(r.Latencies))), len(r.Latencies)-1)]
}

// check turns failures into an error: what is measured answers everything.
func (r Result) check() (Result, error) {
	slices.Sort(r.Latencies)
	if r.Failed > 0 {
		return r, fmt.Errorf("%d of %d requests failed: %w", r.Failed, r.Failed+len(r.Latencies), r.Err)
	}
	if len(r.Latencies) == 0 {
		return r, errors.New("no request was answered")
	}
	return r, nil
}

// tally is what one connection has measured.
type tally struct {
	latencies []time.Duration
	failed    int
	err       error
}

func (t *tally) add(latency time.Duration, err error) {
	if err != nil {
		t.failed++
		t.err = err
		return
	}
	t.latencies = append(t.latencies, latency)
}

// gather runs one goroutine per connection and puts their results together.
func gather(conns int, dial func() (Asker, error), run func(Asker, *tally, time.Time)) (Result, error) {
	askers := make([]Asker, 0, conns)
	defer func() {
		for _, a := range askers {
			a.Close()
		}
	}()
	for range conns {
		a, err := dial()
		if err != nil {
			return Result{}, err
		}
		askers = append(askers, a)
	}
	tallies := make([]tally, conns)
	var wg sync.WaitGroup
	start := time.Now()
	for i, a := range askers {
		wg.Go(func() { run(a, &tallies[i], start) })
	}
	wg.Wait()
	result := Result{Took: time.Since(start)}
	for _, t := range tallies {
		result.Latencies = append(result.Latencies, t.latencies...)
		result.Failed += t.failed
		if result.Err == nil {
			result.Err = t.err
		}
	}
	return result.check()
}

// Constant sends requests at a constant rate over so many connections. Every
// request has a moment at which it is due, and its latency counts from then:
// when answers are late, so that no connection is free, the wait for one is
// part of what the client sees. A generator that waits for its answers before
// it goes on would leave out just the requests that suffer.
func Constant(rate float64, d time.Duration, conns int, dial func() (Asker, error)) (Result, error) {
	total := int64(rate * d.Seconds())
	interval := float64(time.Second) / rate
	var next atomic.Int64
	return gather(conns, dial, func(a Asker, t *tally, start time.Time) {
		for {
			i := next.Add(1) - 1
			if i >= total {
				return
			}
			due := start.Add(time.Duration(float64(i) * interval))
			time.Sleep(time.Until(due))
			err := a.Ask()
			t.add(time.Since(due), err)
			if err != nil {
				return // the connection is no longer of use
			}
		}
	})
}

// Closed lets so many clients ask without pause.
func Closed(d time.Duration, conns int, dial func() (Asker, error)) (Result, error) {
	return gather(conns, dial, func(a Asker, t *tally, begun time.Time) {
		for time.Since(begun) < d {
			start := time.Now()
			err := a.Ask()
			t.add(time.Since(start), err)
			if err != nil {
				return
			}
		}
	})
}

// Times lets so many clients ask n times together, without pause.
func Times(n, conns int, dial func() (Asker, error)) (Result, error) {
	var next atomic.Int64
	return gather(conns, dial, func(a Asker, t *tally, _ time.Time) {
		for next.Add(1) <= int64(n) {
			start := time.Now()
			err := a.Ask()
			t.add(time.Since(start), err)
			if err != nil {
				return
			}
		}
	})
}
