package main

import (
	"math"
	"math/cmplx"
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

// circle returns the n-th roots of unity, in order. It spares the sines: Relay
// takes thousands of them each second.
func circle(n int) []complex128 {
	if n == relayLookback {
		return wholeCircle
	}
	return newCircle(n)
}

var wholeCircle = newCircle(relayLookback)

func newCircle(n int) []complex128 {
	roots := make([]complex128, n)
	for k := range roots {
		roots[k] = cmplx.Rect(1, 2*math.Pi*float64(k)/float64(n))
	}
	return roots
}

// push adds an error.
func (h *relayHistory) push(e float64) {
	if len(h.errors) < relayLookback {
		if h.errors = append(h.errors, e); len(h.errors) == relayLookback {
			h.bins = transform(h.errors)
		}
		return
	}
	// The window slides: each bin turns by one sample.
	change := complex(e-h.errors[0], 0)
	h.errors = append(h.errors[1:], e)
	for j := range h.bins {
		h.bins[j] = (h.bins[j] + change) * wholeCircle[j]
	}
}

// transform returns the bins up to the half.
func transform(x []float64) []complex128 {
	n := len(x)
	roots := circle(n)
	bins := make([]complex128, n/2+1)
	for k, v := range x {
		if v == 0 {
			continue
		}
		for j, at := 0, 0; j < len(bins); j++ {
			bins[j] += complex(v*real(roots[at]), -v*imag(roots[at]))
			if at += k; at >= n {
				at -= n
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
	roots := circle(n)
	w := 0.0
	for j := 1; j < n/2; j++ {
		amplitude := cmplx.Abs(bins[j])
		if amplitude < 1e-9 {
			continue
		}
		sine, cosine := imag(bins[j])/amplitude, real(bins[j])/amplitude
		g := 0.0
		for k, at := 0, 0; k <= (n+j-1)/j; k++ {
			// The sine of the phase less k turns.
			g += math.Abs(sine*real(roots[at]) - cosine*imag(roots[at]))
			if at += j; at >= n {
				at -= n
			}
		}
		w += sine / g * amplitude / sum
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
