package main

import (
	"math"
	"math/cmplx"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// relay is Sailthru's Relay as it is written: each second it adds the whole
// error, less a weighted mean of the errors of the past. The error is how many
// instances are needed beyond those that are ready.
type relay struct{}

// relayLookback is how many errors it looks back at.
const relayLookback = 1000

type relayMemory struct {
	from time.Time
	at   time.Time
	past *relayHistory
}

// relayHistory has the latest errors, and their discrete Fourier transform once
// there are relayLookback of them.
type relayHistory struct {
	errors []float64
	bins   []complex128
}

// push adds an error.
func (h *relayHistory) push(e float64) {
	h.errors = append(h.errors, e)
	switch n := len(h.errors); {
	case n < relayLookback:
	case n == relayLookback:
		h.bins = transform(h.errors)
	default:
		// The window slides: each bin turns by one sample.
		gone := h.errors[0]
		h.errors = slices.Clone(h.errors[1:])
		for j := range h.bins {
			turn := cmplx.Rect(1, 2*math.Pi*float64(j)/relayLookback)
			h.bins[j] = (h.bins[j] - complex(gone, 0) + complex(e, 0)) * turn
		}
	}
}

// transform returns the bins up to the half.
func transform(x []float64) []complex128 {
	n := len(x)
	bins := make([]complex128, n/2+1)
	for j := range bins {
		for k, v := range x {
			if v != 0 {
				bins[j] += complex(v, 0) * cmplx.Rect(1, -2*math.Pi*float64(j*k%n)/float64(n))
			}
		}
	}
	return bins
}

// weight is the weight of the mean error.
func (h *relayHistory) weight() float64 {
	n := len(h.errors)
	bins := h.bins
	if bins == nil {
		bins = transform(h.errors)
	}
	sum := 0.0
	for j := 1; j < n/2; j++ {
		sum += cmplx.Abs(bins[j])
	}
	if sum < 1e-9 {
		return 1
	}
	w := 0.0
	for j := 1; j < n/2; j++ {
		amplitude := cmplx.Abs(bins[j])
		if amplitude < 1e-9 {
			continue
		}
		phase, turn := cmplx.Phase(bins[j]), 2*math.Pi*float64(j)/float64(n)
		g := 0.0
		for k := 0; k <= (n+j-1)/j; k++ {
			g += math.Abs(math.Sin(phase - float64(k)*turn))
		}
		w += math.Sin(phase) / g * amplitude / sum
	}
	return w
}

// step takes in an error and returns how many instances to add or remove.
func (h *relayHistory) step(e float64) int {
	first := len(h.errors) == 0
	if first {
		h.push(0) // the ramp of one step: the whole error at once
		return int(e)
	}
	h.push(e)
	mean := 0.0
	for _, v := range h.errors {
		mean += v
	}
	mean /= float64(len(h.errors))
	return int(math.RoundToEven(e - h.weight()*mean))
}

func (relay) Window() time.Duration { return 0 }

func (relay) Target(in scaler.Inputs, m scaler.Memory) (scaler.Advice, scaler.Memory) {
	r, known := m.(relayMemory)
	if !known {
		if in.Demand == 0 {
			return within(in, 0, 0, time.Time{}), nil
		}
		r = relayMemory{from: in.Now, at: in.Now.Add(-time.Second), past: new(relayHistory)}
	}
	if in.Running == 0 && in.Demand == 0 && in.Target == 0 {
		return within(in, 0, 0, time.Time{}), r // every error is 0
	}
	n := in.Target
	if d := in.Now.Sub(r.at); d >= time.Second {
		for range min(int(d/time.Second)-1, relayLookback) {
			r.past.push(0) // it slept
		}
		n += r.past.step(float64(need(in.Demand, in.Concurrency) - in.Ready))
		r.at = in.Now
	}
	return within(in, n, scaler.NoMark, r.at.Add(time.Second)), r
}
