package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Settings are the options of a service that its control loop obeys. They
// may change while it runs.
type Settings struct {
	// Min and Max bound the number of instances of one revision. Max counts
	// what exists, as Overlap says.
	Min, Max int

	// Awake is the fewest instances while the service is awake; no more than Max.
	Awake int

	// Needs are the services without which this one does not start. They form no
	// circle. Group has those that wake and sleep with it; nil for none.
	Needs []Need
	Group *Group

	// MaxAge is how long an instance may exist before another one replaces it,
	// less up to a tenth, so that instances of one age differ; 0 is for ever.
	MaxAge time.Duration

	// Busy is how an instance without requests is asked whether it works in the
	// background before it is stopped; the zero value does not ask.
	Busy Busy

	// Overlap says whether a new instance may start while an old one stops.
	Overlap Overlap

	// Beside is true where, with OverlapDefault, a changed backend starts its
	// instances beside the old ones even if the maximum is 1.
	Beside bool

	// Concurrency is the number of slots of an instance; 0 is unlimited.
	Concurrency int

	// IdleTimeout is how long a service stays awake without demand; 0 is for
	// ever.
	IdleTimeout time.Duration

	// StartTimeout is how long one instance may take to become ready.
	StartTimeout time.Duration

	// StartAttempts is how many starts in a row may fail before the service is
	// failing. Default (0): DefaultStartAttempts.
	StartAttempts int

	// DrainTimeout is how long a cordoned instance may finish its requests.
	DrainTimeout time.Duration

	// StopTimeout is the time from the stop signal to the kill.
	StopTimeout time.Duration

	// Check is the readiness check. Instances that are ready stay so when it
	// changes.
	Check Check

	// Policy turns demand into a number of instances.
	Policy scaler.Policy
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

	// Busy says what it works at in the background, which keeps it from being
	// stopped; empty if it was not asked, or is free.
	Busy string

	// SessionUntil is until when a session of it may go on; zero if none is known.
	SessionUntil time.Time
}

// Status describes a service at one moment.
type Status struct {
	State     State           `json:",omitzero"`
	Target    int             `json:",omitzero"`
	Starting  int             `json:",omitzero"`
	Ready     int             `json:",omitzero"`
	Ejected   int             `json:",omitzero"`
	Draining  int             `json:",omitzero"`
	LastError *scaler.Failure `json:",omitzero"` // of the latest failed start or order; nil once one has succeeded
	Trouble   *scaler.Failure `json:",omitzero"` // what the platform reports now; nil if all is well
	Start     StartStatus     `json:",omitzero"`
	ColdStart time.Duration   `json:",omitzero"`

	// KeptBy names the services that need this one and keep it awake; empty if there
	// is none.
	KeptBy string `json:",omitzero"`
	// ColdStarts counts the cold starts, ColdStart is what the last took.
	ColdStarts int `json:",omitzero"`

	// Avoidable counts those of them that came so soon after the last instance
	// was wanted that keeping it for idle_timeout would have spared them.
	// IdleTime is for how long instances were ready without a request, summed
	// up.
	Avoidable int           `json:",omitzero"`
	IdleTime  time.Duration `json:",omitzero"`

	// Needed is how many instances the requests inside and waiting need now.
	// Outlook is what was said at the latest decision.
	Needed  int     `json:",omitzero"`
	Outlook Outlook `json:",omitzero"`
}

// Refusal is the reason why no request may wait for a service now. Package
// reserver hands it to requests that would have to.
type Refusal struct {
	Kind RefusalKind
	// Short is for clients, Detail for operators.
	Short, Detail string
	// Until is when it may change; zero if that is not known.
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
