package policies

import (
	"math"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Adaptive is a policy that learns how long a service starts, how long its
// requests take and when they come. It starts another instance only where
// waiting requests would not be served sooner by those that are starting. An
// instance without requests stays as long as the service's own pauses make
// worth it, and one is started before a request that is likely to come.
//
// Inputs.IdleTimeout is what it is worth to spare one request the whole wait
// for a start, in time of an idle instance. Until two pauses are known, an
// instance stays for that long.
type Adaptive struct {
	// NoPrewarm keeps it from starting instances before requests come.
	NoPrewarm bool

	// MinIdle is how long the last instance stays without a request in any
	// case. MaxIdle is how long it stays at most, after a request or when it was
	// started before one; 0 is four times the idle timeout.
	MinIdle, MaxIdle time.Duration

	// TargetWait is how long requests may wait for a slot: as many instances
	// as that takes are started, whatever they cost. 0 is without a limit.
	TargetWait time.Duration
}

// Window implements Policy. What it needs of the past is in its memory.
func (Adaptive) Window() time.Duration { return 0 }

const (
	// priorStart and priorService hold until something was measured.
	priorStart   = time.Second
	priorService = time.Second

	// foreverWorth is the worth of a cold start where the idle timeout is off:
	// the last instance stays, and further ones follow this.
	foreverWorth = 5 * time.Minute

	// look is how often use is looked at while there is any. If nothing
	// happens, the pauses grow up to lookRarely.
	look       = time.Second
	lookRarely = 15 * time.Second
)

// now is what one decision of Adaptive is made by.
type now struct {
	Adaptive
	scaler.Inputs
	start, service float64 // in seconds
	worth          float64 // of a cold start, in instance-seconds
	slots          float64 // of an instance; infinite where there is no limit
}

// Target implements Policy.
func (p Adaptive) Target(in scaler.Inputs, memory scaler.Memory) (scaler.Advice, scaler.Memory) {
	old, _ := memory.(*adaptiveMemory)
	if old == nil && in.Demand == 0 && in.Arrivals == 0 && in.Running == 0 {
		// It was never asked for.
		return scaler.Advice{Target: in.Min, Mark: markOf(in.Min, in), Reason: minReason(in)}, nil
	}
	m := old.clone()
	n := p.at(in, m)
	m.observe(n)
	m.settle(n)
	more := m.startsNeeded(n)
	if n.TargetWait > 0 && n.Waiting > 0 && n.Concurrency > 0 {
		more = max(more, min(keepsWaitBelow(in, n.TargetWait, n.slots), n.Max)-n.Running)
	}
	if n.Refused {
		// There is no queue that tells what the request would cost.
		more = max(more, min(n.need(n.Peak), n.Max)-n.Running)
	}
	a, until := m.keep(n, more)
	n.ask(m, &a, until)
	m.at, m.waiting = in.Now, in.Waiting
	return a, m
}

// at puts together what a decision is made by.
func (p Adaptive) at(in scaler.Inputs, m *adaptiveMemory) now {
	n := now{Adaptive: p, Inputs: in, slots: math.Inf(1)}
	if in.Concurrency > 0 {
		n.slots = float64(in.Concurrency)
	}
	m.Start = orElse(in.StartTime, m.Start)
	n.start = max(orElse(m.Start, priorStart).Seconds(), 0.01)
	n.service = m.serviceTime(in)
	n.worth = in.IdleTimeout.Seconds()
	if in.IdleTimeout <= 0 {
		n.worth = foreverWorth.Seconds()
	}
	return n
}

// crowded is how many requests inside, on average, tell by themselves how long
// they take.
const crowded = 4

// serviceTime returns how long an instance takes for a request, in seconds. By
// Little's law that is the time inside of all over the number that left: long
// requests that are still inside count, too. Of few requests inside, looks now
// and then say little.
func (m *adaptiveMemory) serviceTime(in scaler.Inputs) float64 {
	inside, done := float64(in.Demand-in.Waiting), in.Arrivals-uint64(max(in.Demand, 0))
	if dt := in.Now.Sub(m.at).Seconds(); !m.at.IsZero() && dt > 0 && dt <= lookRarely.Seconds() && in.Arrivals >= m.arrivals {
		left := float64(done) - float64(m.done)
		keep := math.Pow(1-1.0/64, max(left, 0))
		m.Inside = float32(keep*float64(m.Inside) + dt*(inside+float64(m.inside))/2)
		m.Left = float32(keep*float64(m.Left) + max(left, 0))
	}
	m.inside, m.done = in.Demand-in.Waiting, done
	if in.ServiceTime > 0 && m.Service > 0 {
		m.Service += (in.ServiceTime - m.Service) / 16
	} else {
		m.Service = orElse(in.ServiceTime, m.Service)
	}
	s := orElse(m.Service, priorService).Seconds()
	if inside >= crowded {
		s = max(s, (priorService.Seconds()+float64(m.Inside))/(1+float64(m.Left)))
	}
	return max(s, 0.001)
}

// orElse is what was measured, or else what holds without.
func orElse(measured, otherwise time.Duration) time.Duration {
	if measured > 0 {
		return measured
	}
	return otherwise
}

// need is how many instances so many requests need.
func (n now) need(demand int) int {
	switch {
	case demand <= 0:
		return 0
	case n.Concurrency <= 0:
		return 1
	}
	return (demand-1)/n.Concurrency + 1
}

// ask says when the answer may change: at which demand, and when.
func (n now) ask(m *adaptiveMemory, a *scaler.Advice, until time.Time) {
	capacity := scaler.NoMark
	if n.Concurrency > 0 && n.Ready < n.Max {
		capacity = min(n.Ready, noNeed) * n.Concurrency
	}
	if n.Ready == 0 {
		capacity = 0
	}
	at := func(t time.Time) {
		if !t.IsZero() && (a.Recheck.IsZero() || t.Before(a.Recheck)) {
			a.Recheck = t
		}
	}
	at(until)
	switch idle := n.Now.Sub(m.idleSince); {
	case n.Waiting > 0 && a.Target >= n.Max:
		// There is nothing left to decide but for how long they are needed.
		a.Mark = scaler.NoMark
		at(n.Now.Add(m.pause))
	case n.Waiting > 0:
		// Each further one counts, and so does the time that they wait.
		a.Mark = n.Demand
		at(n.Now.Add(seconds(min(max(n.start/20, 0.05), look.Seconds()))))
	case n.Demand > 0:
		a.Mark = capacity
		at(n.Now.Add(m.pause))
	case idle < look && a.Target > 0:
		// Pauses below a second are not looked at.
		a.Mark = capacity
		at(m.idleSince.Add(look))
	default:
		a.Mark = 0
	}
}

// markOf is the most demand that so many instances are enough for.
func markOf(target int, in scaler.Inputs) int {
	if target >= in.Max || target > 0 && in.Concurrency <= 0 {
		return scaler.NoMark
	}
	return min(target, noNeed) * in.Concurrency
}

// seconds is a duration of so many seconds, a very long one where there are too
// many.
func seconds(s float64) time.Duration {
	return time.Duration(min(max(s, 0), scaler.MaxDuration.Seconds()) * float64(time.Second))
}

var _ scaler.Policy = Adaptive{}
