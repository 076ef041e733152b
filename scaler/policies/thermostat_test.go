package policies

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// plant has a load that its instances share: what each has is the metric. An
// instance takes part a dead time after it was wanted.
func plant(t *testing.T, p Thermostat, dead time.Duration, from, to float64) (values []float64, l *life) {
	t.Helper()
	l = newLife(t, p, dead)
	l.in.IdleTimeout, l.in.Demand, l.in.Arrivals = time.Hour, 1, 1
	every := time.Second
	load := from
	for k := range 1200 {
		if k == 400 {
			load = to
			values = nil
		}
		ready := 0
		for _, at := range l.ready {
			if !at.After(l.in.Now) {
				ready++
			}
		}
		v := load / float64(max(ready, 1))
		values = append(values, v)
		l.in.Metric = scaler.Reading{Value: v, At: l.in.Now, Number: uint64(k + 1), Interval: every}
		l.in.StartTime = dead
		l.decide()
		l.in.Now = l.in.Now.Add(every)
	}
	return values, l
}

func TestTheThermostatDoesNotSwingWhateverTheDeadTime(t *testing.T) {
	for _, dead := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second, time.Minute} {
		for _, c := range []struct{ from, to float64 }{{10, 100}, {100, 30}, {55, 60}, {10, 35}} {
			p := Thermostat{Value: 10}
			values, l := plant(t, p, dead, c.from, c.to)
			over, above := 0, false
			for _, v := range values {
				now := v > 11
				if now && !above {
					over++
				}
				above = now
			}
			if over > 1 {
				t.Errorf("dead time %v, load %v to %v: %d times above the deadband", dead, c.from, c.to, over)
			}
			if last := values[len(values)-1]; last > 11 || last < 5 {
				t.Errorf("dead time %v, load %v to %v: it ends at %v with %d instances", dead, c.from, c.to, last, len(l.ready))
			}
		}
	}
}

// asked is one question to a thermostat that had the instances before.
func asked(p Thermostat, m *scaler.Memory, in scaler.Inputs, number uint64, value float64) scaler.Advice {
	in.Metric.Number, in.Metric.Value, in.Metric.At = number, value, in.Now
	a, next := p.Target(in, *m)
	*m = next
	return a
}

func TestTheThermostatSaysWhatItDoes(t *testing.T) {
	now := time.Unix(10000, 0)
	in := scaler.Inputs{
		Now: now, Max: 9, Demand: 1, Running: 3, Ready: 3, Target: 3, StartTime: time.Second,
		Metric: scaler.Reading{Interval: time.Second},
	}
	p := Thermostat{Value: 10}
	var m scaler.Memory
	if a := asked(p, &m, in, 1, 30); a.Target != 3 {
		t.Errorf("one reading is enough: %+v", a)
	}
	if a := asked(p, &m, in, 2, 30); a.Target != 6 || a.Reason != "the metric is 30, and the target is 10" {
		t.Errorf("two readings: %+v", a)
	}
	in.Running, in.Ready, in.Starting, in.Target = 6, 3, 3, 6
	if a := asked(p, &m, in, 3, 30); a.Target != 6 {
		t.Errorf("while they start: %+v", a)
	}
	in.Now, in.Ready, in.Starting = now.Add(time.Minute), 6, 0
	asked(p, &m, in, 4, 100)
	if a := asked(p, &m, in, 5, 100); a.Target != 9 || !strings.HasPrefix(a.Reason, "starved: ") {
		t.Errorf("at the maximum: %+v", a)
	}
	for _, why := range []error{errors.New("connection refused"), errors.New("the query yields 2 series")} {
		failed := in
		failed.Metric = scaler.Reading{Value: 100, At: in.Now.Add(-time.Minute), Number: 6, Err: why, Interval: time.Second}
		if a, _ := p.Target(failed, m); a.Target != 9 || !strings.Contains(a.Reason, why.Error()) || !strings.Contains(a.Reason, "9 stay") {
			t.Errorf("a source that fails: %+v", a)
		}
	}
	stale := in
	stale.Metric = scaler.Reading{Value: 0, At: in.Now.Add(-time.Hour), Number: 6, Interval: time.Second}
	if a, _ := p.Target(stale, m); a.Target != 9 || !strings.Contains(a.Reason, "old") {
		t.Errorf("a stale value: %+v", a)
	}
}

func TestASourceThatFailsNeverScalesToZero(t *testing.T) {
	in := scaler.Inputs{
		Now: time.Unix(10000, 0), Max: 9, Running: 2, Ready: 2, Target: 2, IdleTimeout: time.Second, IdleSince: time.Unix(1, 0),
		Metric: scaler.Reading{Err: errors.New("gone"), Interval: time.Second},
	}
	if a, _ := (Thermostat{Value: 10}).Target(in, nil); a.Target != 2 {
		t.Errorf("%+v", a)
	}
}

func TestAMetricOfZeroEndsAServiceThatIsIdle(t *testing.T) {
	in := scaler.Inputs{
		Now: time.Unix(10000, 0), Max: 9, Running: 1, Ready: 1, Target: 1, IdleTimeout: time.Minute, IdleSince: time.Unix(9990, 0),
		Metric: scaler.Reading{Interval: time.Second},
	}
	p := Thermostat{Value: 10}
	var m scaler.Memory
	asked(p, &m, in, 1, 0)
	if a := asked(p, &m, in, 2, 0); a.Target != 1 {
		t.Errorf("before idle_timeout: %+v", a)
	}
	in.Now = in.Now.Add(time.Hour)
	asked(p, &m, in, 3, 0)
	if a := asked(p, &m, in, 4, 0); a.Target != 0 || !a.Idle {
		t.Errorf("after idle_timeout: %+v", a)
	}
	in.Running, in.Ready, in.Target = 0, 0, 0
	in.Now = in.Now.Add(time.Minute)
	asked(p, &m, in, 5, 50)
	if a := asked(p, &m, in, 6, 50); a.Target != 1 {
		t.Errorf("the metric asks for the first one: %+v", a)
	}
}

func TestTheThermostatStaysWithinItsSteps(t *testing.T) {
	for _, raises := range []bool{false, true} {
		p := Thermostat{Value: 10, StepUp: 2, StepDown: 1, Raises: raises, Cooldown: time.Millisecond}
		var m scaler.Memory
		n := 4
		now := time.Unix(10000, 0)
		for k := range 200 {
			now = now.Add(time.Minute)
			value := []float64{0, 1e-300, 5, 9.5, 20, 1e300, math.MaxFloat64, -7}[k%8]
			in := scaler.Inputs{
				Now: now, Min: 1, Max: 50, Demand: 1, Running: n, Ready: n, Target: n, StartTime: time.Second,
				Metric: scaler.Reading{Interval: time.Second},
			}
			asked(p, &m, in, uint64(2*k+1), value)
			a := asked(p, &m, in, uint64(2*k+2), value)
			if a.Target > n+2 || a.Target < n-1 {
				t.Fatalf("from %d to %d at %v", n, a.Target, value)
			}
			n = a.Target
		}
	}
}
