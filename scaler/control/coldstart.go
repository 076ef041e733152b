package control

import (
	"encoding/json"
	"time"
)

// A ColdStart is one way of a service from zero to its first answer, step by
// step. The steps that have not been made yet are 0.
type ColdStart struct {
	// Asked is when what wants the start came: the oldest request that
	// waited, or the word of an operator.
	Asked time.Time

	// Instance is the first instance that was ready.
	Instance string

	// Accepted is how long after that the platform had accepted the order,
	// Address when it was known where the first instance is, Ready when the
	// first instance had passed its readiness check, and FirstByte when the
	// first byte of an answer to a request that had waited came from it.
	Accepted, Address, Ready, FirstByte time.Duration

	// startRequested is true if no request waits for it: an operator asked for
	// it, or a request that could not wait.
	startRequested bool
}

// MarshalJSON implements json.Marshaler: the steps are in milliseconds.
func (c ColdStart) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) *float64 {
		if d == 0 {
			return nil
		}
		v := float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
		return &v
	}
	return json.Marshal(struct {
		Asked     time.Time `json:"asked"`
		Instance  string    `json:"instance,omitempty"`
		Accepted  *float64  `json:"accepted_ms,omitempty"`
		Address   *float64  `json:"address_ms,omitempty"`
		Ready     *float64  `json:"ready_ms,omitempty"`
		FirstByte *float64  `json:"first_byte_ms,omitempty"`
	}{c.Asked, c.Instance, ms(c.Accepted), ms(c.Address), ms(c.Ready), ms(c.FirstByte)})
}

// since is how long after the beginning now is: never 0, which is a step that
// has not been made.
func (c *ColdStart) since(now time.Time) time.Duration { return max(1, now.Sub(c.Asked)) }

// waking begins a cold start, of which d is the decision. The lock is held.
func (l *Loop) waking(d *Decision, asked time.Time) {
	l.record().wakes(asked, l.settings.IdleTimeout)
	l.cold = &ColdStart{Asked: asked, startRequested: l.startRequested}
	l.answered.Store(true) // there is nothing to wait for until it is ready
	d.ColdStart = l.cold
}

// notCold takes back that this is a cold start. The lock is held.
func (l *Loop) notCold() {
	decisions := l.recalled().decisions
	for k := range decisions {
		if decisions[k].ColdStart == l.cold {
			decisions[k].ColdStart = nil
		}
	}
	l.cold = nil
}

// starting tells whether a cold start is in progress. The lock is held.
func (l *Loop) starting() bool { return l.cold != nil && l.cold.Ready == 0 }

// accepted takes note that the platform has accepted the order to start.
func (l *Loop) accepted(now time.Time) {
	if l.starting() && l.cold.Accepted == 0 {
		l.cold.Accepted = l.cold.since(now)
	}
}

// located takes note that it is known where an instance is. A platform that
// says so has accepted the order, even if its word on that is still to come.
func (l *Loop) located(now time.Time) {
	if l.starting() && l.cold.Address == 0 {
		l.accepted(now)
		l.cold.Address = l.cold.since(now)
	}
}

// woken takes note that the first instance is ready.
func (l *Loop) woken(instance string, now time.Time) {
	took := l.cold.since(now)
	l.cold.Ready, l.cold.Instance = took, instance
	// It is there for the requests that may come now, so its idle time begins
	// now.
	l.reserver.ResetIdle()
	l.answered.Store(false)
	past := l.record()
	past.coldCount++
	past.coldLast = took
	if past.startMean == 0 {
		past.startMean = took
	} else {
		past.startMean = (3*past.startMean + took) / 4
	}
	l.observer.Observe(*l.cold)
}

// Answered takes note that a request which had waited for a cold start has
// got the first byte of its answer. Only the first one after a start counts,
// so it costs the others next to nothing.
func (l *Loop) Answered() {
	if l.answered.Swap(true) {
		return
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cold != nil && l.cold.Ready != 0 && l.cold.FirstByte == 0 {
		l.cold.FirstByte = l.cold.since(now)
	}
}
