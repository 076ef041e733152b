package main

import (
	"math"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

// hybrid is the hybrid histogram policy of Shahrad et al., "Serverless in the
// Wild" (ATC 2020), with its defaults: a histogram of idle times in minutes, up
// to four hours. An application is unloaded at once and loaded again shortly
// before the 5th percentile, until the 99th, each with a margin of a tenth. An
// unclear histogram means to stay for its whole range; where most idle times
// lie beyond it, their mean with a margin of 15 % is the forecast, in place of
// the paper's ARIMA. The paper has one container for an application; levels
// above the first follow the policy queue here.
type hybrid struct{}

const (
	hybridBins   = 240
	hybridLow    = 0.05
	hybridHigh   = 0.99
	hybridMargin = 0.10
	hybridSpread = 2.0 // the coefficient of variation of a clear histogram
	hybridBeyond = 0.5 // the part of idle times beyond the range that calls for a forecast
	hybridGuess  = 0.15
)

type hybridMemory struct {
	bins    *[hybridBins]int
	count   int
	beyond  int
	sum     float64 // of the idle times beyond the range, in minutes
	idle    time.Time
	arrived uint64
}

// windows returns when to load after a request, and how long to stay then.
func (m hybridMemory) windows() (load, stay time.Duration) {
	total := m.count + m.beyond
	if total > 0 && float64(m.beyond)/float64(total) > hybridBeyond {
		mean := m.sum / float64(m.beyond)
		return minutes(mean * (1 - hybridGuess)), minutes(mean * 2 * hybridGuess)
	}
	if m.count == 0 || m.variation() <= hybridSpread {
		return 0, hybridBins * time.Minute
	}
	low, high, sum := -1, hybridBins, 0
	for k, n := range m.bins {
		sum += n
		if low < 0 && float64(sum) >= hybridLow*float64(m.count) {
			low = k
		}
		if float64(sum) >= hybridHigh*float64(m.count) {
			high = k + 1
			break
		}
	}
	load = minutes(float64(low) * (1 - hybridMargin))
	return load, minutes(float64(high)*(1+hybridMargin)) - load
}

func minutes(m float64) time.Duration { return time.Duration(m * float64(time.Minute)) }

// variation is the coefficient of variation of the bins' counts.
func (m hybridMemory) variation() float64 {
	mean := float64(m.count) / hybridBins
	v := 0.0
	for _, n := range m.bins {
		v += (float64(n) - mean) * (float64(n) - mean)
	}
	return math.Sqrt(v/hybridBins) / mean
}

// learn takes in an idle time.
func (m hybridMemory) learn(gap time.Duration) hybridMemory {
	if k := int(gap / time.Minute); k < hybridBins {
		m.bins[k]++
		m.count++
	} else {
		m.beyond++
		m.sum += gap.Minutes()
	}
	return m
}

func (hybrid) Window() time.Duration { return policies.Queue{}.Window() }

func (hybrid) Target(in scaler.Inputs, mem scaler.Memory) (scaler.Advice, scaler.Memory) {
	m, known := mem.(hybridMemory)
	if !known {
		if in.Demand == 0 {
			return within(in, 0, 0, time.Time{}), nil
		}
		m = hybridMemory{bins: new([hybridBins]int)}
	}
	if in.Arrivals != m.arrived && !m.idle.IsZero() {
		m = m.learn(max(0, in.Now.Sub(m.idle)))
		m.idle = time.Time{}
	}
	m.arrived = in.Arrivals
	if in.Demand > 0 {
		in.IdleTimeout = 0
		a, _ := policies.Queue{}.Target(in, nil)
		a.Recheck = in.Now.Add(time.Second)
		return a, m
	}
	if m.idle.IsZero() {
		m.idle = in.IdleSince
	}
	load, stay := m.windows()
	on, off := m.idle.Add(load), m.idle.Add(load+stay)
	switch {
	case in.Now.Before(on):
		return within(in, 0, 0, on), m
	case in.Now.Before(off):
		return within(in, 1, 0, off), m
	}
	return within(in, 0, 0, time.Time{}), m
}
