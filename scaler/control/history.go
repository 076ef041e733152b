package control

import (
	"slices"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// history is what a loop remembers of what it did. Most loops of a large
// configuration have done nothing yet.
type history struct {
	// What was asked of the service, for the policy, and what the policy
	// itself remembers.
	samples []scaler.Sample
	memory  scaler.Memory

	// What the samples know already: when one was taken last, the demand and
	// the arrivals then; and whether the next one begins anew.
	sampled  time.Time
	demand   int
	arrivals uint64
	reset    bool

	decisions []Decision
	coldCount int
	coldLast  time.Duration
	startMean time.Duration // moving average of cold starts
	readyMean time.Duration // moving average of all starts

	outlook Outlook // of the latest decision

	// For how long instances were ready without a request, summed up until
	// idleTo; so many are idle since then.
	idleTime time.Duration
	idleTo   time.Time
	idle     int

	asleepFrom time.Time // when the target became 0
	avoidable  int       // cold starts within the worth of one after that
}

// Memory returns what the policy remembers; nil if it remembers nothing.
func (l *Loop) Memory() scaler.Memory {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recalled().memory
}

// Recall gives the policy in force a memory that was kept elsewhere, in place of
// what it remembers.
func (l *Loop) Recall(m scaler.Memory) {
	l.mu.Lock()
	l.record().memory = m
	l.mu.Unlock()
	l.Trigger()
}

// recalled returns what the loop remembers, to read it. The lock is held.
func (l *Loop) recalled() history {
	if l.done == nil {
		return history{}
	}
	return *l.done
}

// record returns what the loop remembers, to add to it. The lock is held.
func (l *Loop) record() *history {
	if l.done == nil {
		l.done = new(history)
	}
	return l.done
}

// decided keeps a decision, and forgets the oldest if there are too many.
func (h *history) decided(d Decision) {
	if len(h.decisions) == decisionsKept {
		copy(h.decisions, h.decisions[1:])
		h.decisions = h.decisions[:decisionsKept-1]
	}
	h.decisions = append(h.decisions, d)
}

// remember adds the present to the samples and forgets those that are too old.
// Spans shorter than a part of the window are put together. A service that
// sleeps keeps its samples: the next request may come soon. It returns the
// highest demand since the last call. The lock is held.
func (l *Loop) remember(now time.Time, running int, stats reserver.Stats) (peak int) {
	_, elsewhere := l.demandElsewhere()
	peak = l.reserver.TakePeak() + elsewhere
	if l.done == nil && running == 0 && peak == 0 && stats.Arrivals == 0 {
		return 0
	}
	h, window := l.record(), l.settings.Policy.Window()
	h.samples = slices.DeleteFunc(h.samples, func(s scaler.Sample) bool {
		news := s.Instances > 0 && !s.At.Before(h.sampled) // no decision has seen it
		return now.Sub(s.At) >= window && !news
	})
	if len(h.samples) == 0 {
		h.samples = nil // its memory is given back
	}
	s := scaler.Sample{
		At: now, Demand: peak, Mean: float64(h.demand), Arrivals: int(stats.Arrivals - h.arrivals), Reset: h.reset,
	}
	if !h.sampled.IsZero() && !h.reset {
		s.Span = now.Sub(h.sampled)
	}
	h.sampled, h.demand, h.arrivals = now, stats.Demand, stats.Arrivals
	if running == 0 && peak == 0 {
		h.reset = true
		return peak
	}
	h.reset = false
	if n := len(h.samples); n > 1 && !s.Reset && h.samples[n-1].Instances == 0 && h.samples[n-1].At.Sub(h.samples[n-2].At) < window/scaler.HistoryParts {
		h.samples[n-1] = together(h.samples[n-1], s)
		return peak
	}
	h.samples = append(h.samples, s)
	return peak
}

// started takes note of how long a start took.
func (h *history) started(took time.Duration) {
	if h.readyMean == 0 {
		h.readyMean = took
	} else {
		h.readyMean = (3*h.readyMean + took) / 4
	}
}

// asked adds a number of instances that an operator or another program asked
// for. The lock is held.
func (l *Loop) asked(now time.Time, instances int, reset bool) {
	h := l.record()
	h.samples = append(h.samples, scaler.Sample{At: now, Instances: instances, Reset: reset})
}

// together is one sample of two successive ones.
func together(a, b scaler.Sample) scaler.Sample {
	sum := scaler.Sample{At: b.At, Span: a.Span + b.Span, Demand: max(a.Demand, b.Demand), Arrivals: a.Arrivals + b.Arrivals, Mean: b.Mean, Reset: a.Reset}
	if sum.Span > 0 {
		sum.Mean = (a.Mean*float64(a.Span) + b.Mean*float64(b.Span)) / float64(sum.Span)
	}
	return sum
}

// Served takes note of how long an instance took for a request.
func (l *Loop) Served(d time.Duration) {
	// A lost update is one sample less.
	if old := l.serving.Load(); old == 0 {
		l.serving.CompareAndSwap(0, int64(d))
	} else {
		l.serving.CompareAndSwap(old, old+(int64(d)-old)/8)
	}
}

// ServiceTime is a moving average of the durations that Served was told; 0 if
// it was told of none.
func (l *Loop) ServiceTime() time.Duration { return time.Duration(l.serving.Load()) }
