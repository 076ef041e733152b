package main

import (
	"math"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// need is how many instances so many requests need.
func need(demand, concurrency int) int {
	if concurrency == 0 {
		return min(demand, 1)
	}
	return (demand + concurrency - 1) / concurrency
}

// tick is when the next step of length d is due, in a grid that begins at from.
func tick(from, now time.Time, d time.Duration) time.Time {
	return from.Add(now.Sub(from).Truncate(d) + d)
}

// within is the advice to have n instances, as far as the bounds allow.
func within(in scaler.Inputs, n int, mark int, recheck time.Time) scaler.Advice {
	n = min(max(n, in.Min), in.Max)
	if n == 0 {
		mark = 0
	}
	return scaler.Advice{Target: n, Mark: mark, Recheck: recheck}
}

// keepAlive is what most platforms of functions do: a request for which there
// is no room starts an instance, and an instance stays for a fixed time after
// its last request.
type keepAlive struct{ stay time.Duration }

// keepAliveMemory has for each level of need until when it stays.
type keepAliveMemory []time.Time

func (keepAlive) Window() time.Duration { return 0 }

func (p keepAlive) Target(in scaler.Inputs, m scaler.Memory) (scaler.Advice, scaler.Memory) {
	until, _ := m.(keepAliveMemory)
	until = slices.Clone(until)
	n := min(need(in.Demand, in.Concurrency), in.Max)
	for len(until) < n {
		until = append(until, time.Time{})
	}
	for k := range n {
		until[k] = in.Now.Add(p.stay)
	}
	if in.Demand == 0 && len(until) > 0 && in.Running > 0 {
		// The last request may have come and gone since the last look.
		until[0] = latest(until[0], in.IdleSince.Add(p.stay))
	}
	for len(until) > 0 && !until[len(until)-1].After(in.Now) {
		until = until[:len(until)-1]
	}
	a := within(in, len(until), len(until)*in.Concurrency, time.Time{})
	if len(until) > 0 {
		a.Recheck = until[len(until)-1]
		if in.Demand > 0 {
			a.Recheck = in.Now.Add(time.Second)
		}
	}
	return a, until
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// waiter is the rule of Two Sigma's Waiter with its defaults: two moving
// averages of the outstanding requests, a fast one up and a slow one down. A
// service has at least one instance until it was idle for half an hour.
type waiter struct{}

const (
	waiterUp     = 0.1
	waiterDown   = 0.001
	waiterJitter = 0.5
	waiterIdle   = 30 * time.Minute
	waiterTick   = time.Second
	waiterRest   = 15 * time.Second
)

type waiterMemory struct {
	from   time.Time // of the ticks
	at     time.Time // of the last one
	target float64
}

func (waiter) Window() time.Duration { return 0 }

// waiterStep is one decision: the average, and how many instances more or
// fewer there shall be.
func waiterStep(outstanding, concurrency, total int, target, up, down, jitter float64, ticks, least, most int) (next float64, change int) {
	ideal := math.Ceil(float64(outstanding) / float64(max(concurrency, 1)))
	rise := 1 - math.Pow(1-up, float64(ticks))
	fall := 1 - math.Pow(1-down, float64(ticks))
	next = rise*ideal + (1-rise)*target
	if next < target {
		next = fall*ideal + (1-fall)*target
	}
	next = max(min(next, float64(most)), float64(least))
	d := next - float64(total)
	if math.Abs(d) < jitter || d > 0 && ideal <= float64(total) && total >= least {
		return next, 0
	}
	return next, int(math.Ceil(d - 0.01))
}

func (waiter) Target(in scaler.Inputs, m scaler.Memory) (scaler.Advice, scaler.Memory) {
	w, awake := m.(waiterMemory)
	if in.Demand == 0 && (in.Running == 0 || !in.Now.Before(in.IdleSince.Add(waiterIdle))) {
		return within(in, 0, 0, time.Time{}), nil
	}
	if !awake {
		w = waiterMemory{from: in.Now, at: in.Now, target: 1}
		return within(in, 1, scaler.NoMark, tick(w.from, in.Now, time.Second)), w
	}
	ticks := int(in.Now.Sub(w.at) / time.Second)
	n := in.Target
	if ticks > 0 {
		var change int
		w.target, change = waiterStep(in.Demand, in.Concurrency, n, w.target, waiterUp, waiterDown, waiterJitter, ticks, 1, in.Max)
		n += change
		w.at = w.at.Add(time.Duration(ticks) * time.Second)
	}
	// Several ticks in one come to the same as long as nothing changes.
	pause := waiterTick
	if in.Demand == 0 {
		pause = waiterRest
	}
	return within(in, max(n, 1), scaler.NoMark, tick(w.from, in.Now, pause)), w
}

// hpa is the rule of Kubernetes' HorizontalPodAutoscaler with its defaults, on
// the mean number of requests inside and waiting for each instance, towards 0.7
// of the slots. It has no zero: from the first request on one instance stays.
type hpa struct{ integral func() float64 }

const (
	hpaSync      = 15 * time.Second
	hpaTarget    = 0.7
	hpaTolerance = 0.1
	hpaStay      = 5 * time.Minute
)

type hpaMemory struct {
	from, at time.Time
	integral float64
	wanted   []hpaWanted // of the last hpaStay
}

type hpaWanted struct {
	at time.Time
	n  int
}

func (hpa) Window() time.Duration { return 0 }

// hpaStep is what the metric asks for, no more than twice as many or four more
// at a time.
func hpaStep(mean, target float64, current int) int {
	ratio := mean / (target * float64(current))
	n := int(math.Ceil(mean/target - 1e-9))
	if math.Abs(ratio-1) <= hpaTolerance {
		n = current
	}
	return max(1, min(n, max(2*current, current+4)))
}

func (p hpa) Target(in scaler.Inputs, m scaler.Memory) (scaler.Advice, scaler.Memory) {
	h, awake := m.(hpaMemory)
	switch {
	case !awake && in.Demand == 0:
		return within(in, 0, 0, time.Time{}), nil
	case !awake:
		h = hpaMemory{from: in.Now, at: in.Now, integral: p.integral()}
		return within(in, 1, scaler.NoMark, tick(h.from, in.Now, hpaSync)), h
	case in.Now.Sub(h.at) < hpaSync:
		return within(in, in.Target, scaler.NoMark, h.at.Add(hpaSync)), h
	}
	now := p.integral()
	mean := (now - h.integral) / in.Now.Sub(h.at).Seconds()
	n := hpaStep(mean, hpaTarget*float64(max(in.Concurrency, 1)), max(in.Target, 1))
	h.at, h.integral = in.Now, now
	h.wanted = append(slices.Clone(h.wanted), hpaWanted{in.Now, n})
	h.wanted = slices.DeleteFunc(h.wanted, func(w hpaWanted) bool { return in.Now.Sub(w.at) >= hpaStay })
	for _, w := range h.wanted {
		if w.n > n && n < in.Target {
			n = min(w.n, in.Target)
		}
	}
	return within(in, n, scaler.NoMark, in.Now.Add(hpaSync)), h
}
