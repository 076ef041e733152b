package policies

import (
	"fmt"
	"math"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Thermostat keeps a metric near a target by adding and removing instances. The
// metric is one that more instances lower, such as a queue, a latency or a load
// for each instance; with Raises, one that they raise.
//
// It acts on two readings in a row that are outside the deadband on the same
// side, by what the metric says is missing, and then waits until that has had
// its effect: for Cooldown, or as long as starts and readings take. So it does
// not swing. A source that fails or is stale holds the last number.
type Thermostat struct {
	// Source is where the metric comes from.
	Source scaler.Metric

	// Value is what the metric is kept near, and Deadband how far from it the
	// metric may be. Default: a tenth of the value.
	Value, Deadband float64

	// Raises is true if more instances raise the metric.
	Raises bool

	// StepUp and StepDown bound one change. Default: no bound up, 1 down.
	StepUp, StepDown int

	// Cooldown is the pause after a change. Default: what was measured.
	Cooldown time.Duration
}

// thermostatMemory is what it remembers. It does not change any more.
type thermostatMemory struct {
	number  uint64    // of the last reading that was looked at
	value   float64   // of that reading
	side    int       // on which side of the deadband it was
	changed time.Time // when the number of instances was changed last
	target  int
	stopped time.Time // since when no value can be had
}

// Window implements Policy.
func (Thermostat) Window() time.Duration { return 0 }

// Metric implements scaler.Metered.
func (p Thermostat) Metric() scaler.Metric { return p.Source }

// staleAfter is after how many intervals a value is stale.
const staleAfter = 3

// Target implements Policy.
func (p Thermostat) Target(in scaler.Inputs, memory scaler.Memory) (scaler.Advice, scaler.Memory) {
	m, known := memory.(thermostatMemory)
	if !known {
		m.target = in.Running
	}
	n, reason := p.wanted(in, &m)
	if in.Demand > 0 && n == 0 {
		n, reason = 1, fmt.Sprintf("%d requests", in.Demand)
	}
	if n < 1 && m.target > 0 && !p.mayEnd(in) {
		n = 1
	}
	a := scaler.Advice{Target: min(max(n, in.Min), in.Max), Reason: reason, Idle: in.Demand == 0, Mark: scaler.NoMark}
	switch {
	case n > in.Max, m.side > 0 && m.target >= in.Max:
		a.Reason = fmt.Sprintf("starved: %s, and max is %d", reason, in.Max)
	case in.Running >= in.Target && in.Starting > 0 && !in.StartingSince.IsZero() && in.Now.Sub(in.StartingSince) > 3*orElse(in.StartTime, in.Metric.Interval+priorStart):
		a.Reason = fmt.Sprintf("starved: %d of %d do not get ready; %s", in.Starting, in.Target, reason)
	case a.Target == in.Min && n < in.Min:
		a.Reason = minReason(in)
	}
	if a.Target != m.target {
		m.changed = in.Now
	}
	m.target = a.Target
	if a.Target == 0 {
		a.Mark = 0
	}
	a.Recheck = in.Now.Add(max(in.Metric.Interval, look))
	return a, m
}

// mayEnd says whether the last instance may go: without demand for the idle
// timeout, and a metric that says that nothing is left.
func (p Thermostat) mayEnd(in scaler.Inputs) bool {
	return in.Demand == 0 && in.IdleTimeout > 0 && in.Now.Sub(in.IdleSince) >= in.IdleTimeout
}

// wanted returns how many instances the metric asks for, beyond the bounds as
// well, and why.
func (p Thermostat) wanted(in scaler.Inputs, m *thermostatMemory) (int, string) {
	r := in.Metric
	if r.At.IsZero() || r.Err != nil && in.Now.Sub(r.At) >= r.Interval || in.Now.Sub(r.At) > staleAfter*max(r.Interval, look) {
		if m.stopped.IsZero() {
			m.stopped = in.Now
		}
		m.side = 0
		return m.target, p.silence(in, *m)
	}
	m.stopped = time.Time{}
	band := p.Deadband
	if band == 0 {
		band = math.Abs(p.Value) / 10
	}
	says := fmt.Sprintf("the metric is %.4g, and the target is %.4g", r.Value, p.Value)
	if r.Number == m.number {
		return m.target, says
	}
	side := 0
	switch {
	case r.Value > p.Value+band:
		side = 1
	case r.Value < p.Value-band:
		side = -1
	}
	if p.Raises {
		side = -side
	}
	trend := r.Value - m.value
	twice := m.number > 0 && side != 0 && side == m.side
	m.number, m.value, m.side = r.Number, r.Value, side
	switch {
	case !twice, in.Now.Sub(m.changed) < p.pause(in):
		return m.target, says
	case side > 0 && in.Starting > 0:
		return m.target, says + "; more are starting"
	case side > 0 && m.target > 0 && p.arrives(r.Value, trend, band):
		return m.target, says + "; it comes back by itself"
	case side > 0:
		return m.target + p.up(m.target, r.Value), says
	}
	return m.target - p.down(m.target, r.Value, band), says
}

// silence says why the number is held.
func (p Thermostat) silence(in scaler.Inputs, m thermostatMemory) string {
	why := "no value was read yet"
	switch {
	case in.Metric.Err != nil:
		why = in.Metric.Err.Error()
	case !in.Metric.At.IsZero():
		why = "its last value is " + rough(in.Now.Sub(in.Metric.At).Seconds()) + " old"
	}
	return fmt.Sprintf("the metric cannot be read, so %d stay: %s", m.target, why)
}

// pause is how long a change takes to show: a start and what it spreads, and
// two readings.
func (p Thermostat) pause(in scaler.Inputs) time.Duration {
	if p.Cooldown > 0 {
		return p.Cooldown
	}
	return orElse(in.StartTime, priorStart)*3/2 + 2*in.Metric.Interval
}

// arrives says whether a metric that moves so much from reading to reading is
// within the deadband soon.
func (p Thermostat) arrives(value, trend, band float64) bool {
	const readings = 3
	ahead := value + readings*trend
	if p.Raises {
		return trend > 0 && ahead >= p.Value-band
	}
	return trend < 0 && ahead <= p.Value+band
}

// up returns how many more instances are missing, if each has the same effect.
func (p Thermostat) up(n int, value float64) int {
	ratio := value / p.Value
	if p.Raises {
		ratio = p.Value / value
	}
	more := 1
	if n > 0 && ratio > 1 && !math.IsInf(ratio, 1) {
		more = max(1, int(min(math.Ceil(float64(n)*(ratio-1)-1e-9), scaler.MaxInstances)))
	}
	// A metric that is far off says less about how many are missing.
	more = min(more, max(1, n))
	if p.StepUp > 0 {
		more = min(more, p.StepUp)
	}
	return more
}

// down returns how many instances can go, so that the metric stays on the good
// side of the target.
func (p Thermostat) down(n int, value, band float64) int {
	step := max(p.StepDown, 1)
	for k := min(step, n); k > 0; k-- {
		if k == n {
			if value == 0 {
				return k
			}
			continue
		}
		after := value * float64(n) / float64(n-k)
		worse := after > p.Value
		if p.Raises {
			after = value * float64(n-k) / float64(n)
			worse = after < p.Value
		}
		if !worse {
			return k
		}
	}
	return 0
}

var (
	_ scaler.Policy  = Thermostat{}
	_ scaler.Metered = Thermostat{}
)
