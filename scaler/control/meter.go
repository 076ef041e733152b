package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// meter reads the metric of a policy, as long as the policy is in force.
type meter struct {
	source scaler.Metric
	cancel context.CancelFunc

	mu      sync.Mutex
	reading scaler.Reading
	waits   []time.Duration // since the last reading, waitsKept at most
}

// waitsKept bounds how many waits are kept between two readings.
const waitsKept = 1024

// measure makes the metric of the settings' policy the one that is read. The
// lock is held.
func (l *Loop) measure() {
	var source scaler.Metric
	if p, ok := scaler.Decider(l.settings.Policy).(scaler.Metered); ok {
		source = p.Metric()
	}
	old := l.meter.Load()
	if old != nil {
		if old.source == source {
			return
		}
		old.cancel()
		l.meter.Store(nil)
	}
	if source == nil {
		return
	}
	ctx, cancel := context.WithCancel(l.context())
	m := &meter{source: source, cancel: cancel}
	m.reading.Interval = max(source.Interval(), scaler.MinDuration)
	l.meter.Store(m)
	if !l.background(func() { l.read(ctx, m) }) {
		cancel()
	}
}

// read reads until ctx ends.
func (l *Loop) read(ctx context.Context, m *meter) {
	tick := time.NewTicker(m.reading.Interval)
	defer tick.Stop()
	arrivals, at := l.reserver.Stats().Arrivals, time.Now()
	for {
		stats, now := l.reserver.Stats(), time.Now()
		of := scaler.Observed{Waiting: stats.Waiting + stats.Visitors, InUse: stats.InUse, Ready: stats.Open}
		if oldest := stats.Oldest(); !oldest.IsZero() {
			of.OldestWait = now.Sub(oldest)
		}
		came := stats.Arrivals - arrivals
		if d := now.Sub(at).Seconds(); d > 0 {
			of.Rate = float64(came) / d
		}
		arrivals, at = stats.Arrivals, now
		of.Wait = quantiles(m.takeWaits(), came)
		m.readOnce(ctx, of)
		if ctx.Err() != nil {
			return
		}
		l.Trigger()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readOnce reads the metric once, and takes note of what came of it.
func (m *meter) readOnce(ctx context.Context, of scaler.Observed) {
	ctx, cancel := context.WithTimeout(ctx, m.reading.Interval)
	defer cancel()
	v, err := m.source.Read(ctx, of)
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %v: %w", m.reading.Interval, err)
	case err == nil && (math.IsNaN(v) || math.IsInf(v, 0)):
		err = fmt.Errorf("the value is %v, which is no number to scale by", v)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reading.Err = err
	if err == nil {
		m.reading.Value, m.reading.At = v, time.Now()
		m.reading.Number++
	}
}

// last returns what came of the last reading.
func (m *meter) last() scaler.Reading {
	if m == nil {
		return scaler.Reading{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reading
}

// Waited takes note of how long a request has waited for its slot.
func (l *Loop) Waited(d time.Duration) {
	m := l.meter.Load()
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waits) < waitsKept {
		m.waits = append(m.waits, d)
	}
}

func (m *meter) takeWaits() []time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.waits
	m.waits = nil
	slices.Sort(w)
	return w
}

// quantiles returns the quantiles of the waits of all requests that came: those
// whose waits are not there did not wait.
func quantiles(waits []time.Duration, came uint64) func(float64) time.Duration {
	return func(part float64) time.Duration {
		n := max(int(min(came, uint64(math.MaxInt32))), len(waits))
		k := int(math.Ceil(part*float64(n))) - 1 - (n - len(waits))
		if k < 0 || len(waits) == 0 {
			return 0
		}
		return waits[min(k, len(waits)-1)]
	}
}
