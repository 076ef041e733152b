package main

import (
	"math"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// kpa is Knative's autoscaler with its defaults: mean concurrency over a stable
// window of 60 s and a panic window of 6 s, towards 0.7 of the slots, decided
// every 2 s, and at once for the first request. With its default burst capacity
// requests of a small service pass the activator in any case, so nothing delays
// the way to zero after a stable window without a request.
type kpa struct{ integral func() float64 }

const (
	kpaTick        = 2 * time.Second
	kpaStable      = 60 * time.Second
	kpaPanic       = 6 * time.Second
	kpaUtilization = 0.7
	kpaThreshold   = 2.0
	kpaUp, kpaDown = 1000.0, 2.0
)

type kpaMemory struct {
	from     time.Time
	seen     []kpaSeen // one for each tick, the oldest first
	panicAt  time.Time // when it was last over the threshold; zero outside a panic
	panicMax int
}

type kpaSeen struct {
	at       time.Time
	integral float64
}

func (kpa) Window() time.Duration { return 0 }

// mean is the mean concurrency of the last while, of what is known of it.
func (m kpaMemory) mean(now kpaSeen, window time.Duration) float64 {
	for _, s := range m.seen {
		if d := now.at.Sub(s.at); d <= window && d > 0 {
			return (now.integral - s.integral) / d.Seconds()
		}
	}
	return 0
}

// decide is one decision by the two means.
func (m kpaMemory) decide(now time.Time, stable, panicking, perInstance float64, ready int) (int, kpaMemory) {
	pods := float64(max(ready, 1))
	rawStable, rawPanic := math.Ceil(stable/perInstance), math.Ceil(panicking/perInstance)
	up, down := math.Ceil(pods*kpaUp), math.Floor(pods/kpaDown)
	n := int(max(down, min(rawStable, up)))
	inPanic := int(max(down, min(rawPanic, up)))
	if rawPanic/pods >= kpaThreshold {
		m.panicAt = now
	} else if !m.panicAt.IsZero() && now.Sub(m.panicAt) >= kpaStable {
		m.panicAt, m.panicMax = time.Time{}, 0
	}
	if !m.panicAt.IsZero() {
		m.panicMax = max(m.panicMax, n, inPanic)
		n = m.panicMax
	}
	return n, m
}

func (p kpa) Target(in scaler.Inputs, mem scaler.Memory) (scaler.Advice, scaler.Memory) {
	m, awake := mem.(kpaMemory)
	now := kpaSeen{in.Now, p.integral()}
	switch {
	case !awake && in.Demand == 0:
		return within(in, 0, 0, time.Time{}), nil
	case !awake:
		m = kpaMemory{from: in.Now, seen: []kpaSeen{now}}
		return within(in, 1, scaler.NoMark, in.Now.Add(kpaTick)), m
	}
	if last := m.seen[len(m.seen)-1]; in.Now.Sub(last.at) < kpaTick {
		return within(in, in.Target, scaler.NoMark, last.at.Add(kpaTick)), m
	}
	stable := m.mean(now, kpaStable)
	n, m := m.decide(in.Now, stable, m.mean(now, kpaPanic), kpaUtilization*float64(max(in.Concurrency, 1)), in.Ready)
	m.seen = append(slices.Clone(m.seen), now)
	m.seen = slices.DeleteFunc(m.seen, func(s kpaSeen) bool { return in.Now.Sub(s.at) > kpaStable })
	if in.Demand > 0 || in.Now.Sub(in.IdleSince) < kpaStable {
		n = max(n, 1)
	} else if stable == 0 && n <= 1 {
		return within(in, 0, 0, time.Time{}), nil
	}
	a := within(in, n, scaler.NoMark, in.Now.Add(kpaTick))
	if in.Demand == 0 && n == 1 && m.panicAt.IsZero() {
		// The ticks until then change nothing; a request is seen at once.
		a.Mark, a.Recheck = 0, in.IdleSince.Add(kpaStable)
	}
	return a, m
}
