package scaler

import (
	"time"
)

// Settings are the options of a service that its control loop obeys. They
// may change while it runs.
type Settings struct {
	// Min and Max bound the number of instances of one revision.
	Min, Max int

	// Concurrency is the number of slots of an instance; 0 is unlimited.
	Concurrency int

	// IdleTimeout is how long a service stays awake without demand; 0 is for
	// ever.
	IdleTimeout time.Duration

	// StartTimeout is how long one instance may take to become ready.
	StartTimeout time.Duration

	// DrainTimeout is how long a cordoned instance may finish its requests.
	DrainTimeout time.Duration

	// StopTimeout is the time from the stop signal to the kill.
	StopTimeout time.Duration

	// Check is the readiness check. Instances that are ready stay so when it
	// changes.
	Check Check

	// Policy turns demand into a number of instances.
	Policy Policy
}

// State is the state of a service.
type State string

// The states of a service.
const (
	Asleep    State = "asleep"    // none ready and none wanted
	Waking    State = "waking"    // none ready, at least one wanted
	Awake     State = "awake"     // at least one ready
	Failing   State = "failing"   // starts fail, and none is ready
	Suspended State = "suspended" // turned off by an operator
)

// InstanceState is the state of an instance, as operators see it.
type InstanceState string

// The states of an instance.
const (
	InstanceStarting InstanceState = "starting"
	InstanceReady    InstanceState = "ready"
	InstanceEjected  InstanceState = "ejected"
	InstanceDraining InstanceState = "draining" // cordoned, with requests inside or about to stop
	InstanceStopping InstanceState = "stopping" // told to stop
	InstanceEnded    InstanceState = "ended"
)

// A Decision is a change of target, with its reason and what it was decided
// by.
type Decision struct {
	Time   time.Time      `json:"time"`
	From   int            `json:"from"`
	To     int            `json:"to"`
	Reason string         `json:"reason"`
	Inputs map[string]any `json:"inputs"`

	// ColdStart is how the start from zero went that the decision began.
	ColdStart *ColdStart `json:"cold_start,omitempty"`
}

// decisionsKept is how many decisions can be read back.
const decisionsKept = 100

// InstanceStatus describes one instance.
type InstanceStatus struct {
	ID       string
	Revision string
	Network  string
	Address  string
	State    InstanceState
	Slots    int // 0 is unlimited; none before it is ready
	InUse    int
	Since    time.Time // when it began to exist
}

// Status describes a service at one moment.
type Status struct {
	State     State
	Target    int
	Starting  int
	Ready     int
	Ejected   int
	Draining  int
	LastError *Failure // of the latest failed start or order; nil once one has succeeded
	Trouble   *Failure // what the platform reports now; nil if all is well
	ColdStart time.Duration
	// ColdStarts counts the cold starts, ColdStart is what the last took.
	ColdStarts int
}

// An Observer is told what happens to a service, in order. Its methods are
// called with the loop's lock held: they return at once and call nothing of
// the loop.
type Observer interface {
	Decided(Decision)
	StateChanged(from, to State)
	InstanceChanged(InstanceStatus)
	StartFailed(*Failure)
	ColdStarted(ColdStart)
	// PlatformUp is told whenever the platform's trouble begins (false) and
	// ends (true).
	PlatformUp(bool, *Failure)
}

// Refusal is the reason why nobody may wait for a service now. It is what
// package reserver hands to those who would.
type Refusal struct {
	Kind RefusalKind
	// Short is for clients, Detail for operators.
	Short, Detail string
	// Until is when it may change; zero if nobody knows.
	Until time.Time
}

// RefusalKind is the class of a Refusal.
type RefusalKind uint8

// The classes of refusals.
const (
	RefusedFailing RefusalKind = iota
	RefusedPlatform
	RefusedSuspended
	RefusedExiting
)

// Error implements error.
func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Short
	}
	return r.Short + ": " + r.Detail
}
