package scaler

import (
	"math"
	"time"
)

// A Policy turns demand into a number of instances. It is a pure function of
// its inputs and of what it remembers: it knows no clock and has no state of
// its own, so one value may serve many services at once. It is called under a
// lock, so it returns at once.
//
// Policies are guest modules of Caddy in the namespace usher.policies.
type Policy interface {
	// Target says how many instances there should be now, between
	// Inputs.Min and Inputs.Max, and what to remember until the next call.
	Target(Inputs, Memory) (Advice, Memory)

	// Window returns how far back Inputs.History has to reach.
	Window() time.Duration
}

// Rememberer is implemented by a Policy whose memory survives the end of Caddy.
type Rememberer interface {
	// EncodeMemory returns a memory that Target has returned in a form that can
	// be stored: a few kilobytes of text.
	EncodeMemory(Memory) ([]byte, error)

	// DecodeMemory returns a memory that was stored, perhaps by another
	// version. An error means that it cannot be used, and says why.
	DecodeMemory([]byte) (Memory, error)
}

// Wrapper is implemented by a Policy that changes what another one decides. Its
// memory is the other's.
type Wrapper interface {
	Policy

	// Inner returns the other one.
	Inner() Policy
}

// Decider returns the policy that decides and has the memory: p, or the one
// within.
func Decider(p Policy) Policy {
	for {
		w, ok := p.(Wrapper)
		if !ok {
			return p
		}
		p = w.Inner()
	}
}

// Memory is what a policy remembers of one service. It is nil at first, and
// then what Target returned last. It outlives the service's sleep and reloads,
// also those that change the options of the policy. It is nil again after a
// change to another type of policy. It ends with Caddy, unless the policy is a
// Rememberer. A policy never changes a Memory that it has returned; one without
// a memory returns nil.
type Memory any

// Inputs are what a policy decides by. Times are zero if there is nothing to
// tell, durations are 0 if nothing has been measured yet.
type Inputs struct {
	// Now is the time of the decision.
	Now time.Time

	// Min and Max bound the target.
	Min, Max int

	// Concurrency is the number of slots of one instance; 0 is unlimited.
	Concurrency int

	// Demand is the number of requests and visitors that are a reason to have
	// instances. Waiting is how many of them are in the queue. Peak is the
	// highest Demand since the last decision.
	Demand, Waiting, Peak int

	// Refused is true if a request could not even wait since the last decision,
	// because the queue was full or may hold none.
	Refused bool

	// OldestWait is the time since when the oldest of them waits.
	OldestWait time.Time

	// Target is the number of instances that was decided last.
	Target int

	// Running is the number of instances that exist or are being started.
	// Ready of them take requests, and Starting of them never were ready, the
	// oldest since StartingSince.
	Running, Ready, Starting int
	StartingSince            time.Time

	// Started has since when each of those starts, in no order. It is valid
	// during the call only.
	Started []time.Time

	// StartTime is how long a start takes: a moving average over all starts.
	StartTime time.Duration

	// ServiceTime is how long an instance takes for a request that had to
	// wait: a moving average. Streams are not counted.
	ServiceTime time.Duration

	// Arrivals is how many requests have come since the service was made.
	Arrivals uint64

	// IdleSince is when Demand became 0; meaningless while it is not.
	IdleSince time.Time

	// IdleTimeout is how long to stay without demand; 0 is for ever.
	IdleTimeout time.Duration

	// Metric is what was read of the policy's metric, if it is Metered.
	Metric Reading

	// History has what was asked in successive spans of time, oldest first,
	// back to Policy.Window. While the service sleeps, no span is added. What
	// an operator or another program has asked for since the last decision is
	// there in any case.
	History []Sample
}

// A Sample is what was asked of a service in the span of time that ended At.
type Sample struct {
	// At is the end of the span, and Span its length.
	At   time.Time
	Span time.Duration

	// Demand is the highest demand within the span, and Mean the mean of the
	// demand as it was at each decision.
	Demand int
	Mean   float64

	// Arrivals is how many requests came within the span.
	Arrivals int

	// Instances is a number of instances that an operator asked for, or
	// another program that scales the same thing.
	Instances int

	// Reset is true for the first span after a sleep, and after another
	// program asked for fewer instances: what was needed before is no reason to keep
	// instances now.
	Reset bool
}

// NoMark is a mark that no demand exceeds.
const NoMark = math.MaxInt

// Advice is a policy's answer.
type Advice struct {
	// Target is the number of instances that there should be.
	Target int

	// Reason says why, in a few words for people.
	Reason string

	// Idle is true if the target is the minimum because the service is idle. It
	// is void if a request comes before it is carried out.
	Idle bool

	// Mark is the demand above which the answer changes at once.
	Mark int

	// Recheck is when time alone can change the answer; zero if it cannot.
	Recheck time.Time

	// Predicted is how many instances the policy has, or would have, because of
	// what it expects rather than of what is asked now.
	Predicted int

	// ExpectedFrom and ExpectedTo are the span of time in which the policy
	// expects the next request, if it starts an instance ahead of it; zero
	// otherwise.
	ExpectedFrom, ExpectedTo time.Time

	// Floor is the least number that a schedule asks for now, and NextFloor the
	// one from FloorChange on; the time is zero without a schedule, or if its
	// floor never changes.
	Floor, NextFloor int
	FloorChange      time.Time
}

// HistoryParts is into how many spans a policy's window is divided. Demand
// that falls is noticed with a delay of at most one of them.
const HistoryParts = 20
