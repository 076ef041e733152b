package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// An Event is one thing that happened to a service: a Decision, a StateChange,
// an InstanceStatus that is new, a StartFailure, a ColdStart that has succeeded
// or a new Outlook. It does not change any more.
type Event interface{ event() }

// StateChange is a change of the state of a service.
type StateChange struct{ From, To State }

// StartFailure is a start that failed.
type StartFailure struct {
	*scaler.Failure

	// Together is true if it failed together with others: it counts with them
	// as one failure. The fields below are not set then.
	Together bool

	InARow   int           // failed starts, this one included
	Attempts int           // after how many the service is failing
	Pause    time.Duration // until the next start
	Serving  bool          // an earlier revision keeps serving
}

func (Decision) event()       {}
func (StateChange) event()    {}
func (InstanceStatus) event() {}
func (StartFailure) event()   {}
func (ColdStart) event()      {}
func (Outlook) event()        {}

// An Observer learns what happens to a service, in order. The loop calls
// Observe with its lock held: it returns at once and calls nothing of the loop.
//
// Decisions, changes of the state and failed starts are for the observer to
// log. The loop logs only what is no event: how instances came and went, what
// the platform does and says, and orders that failed.
type Observer interface{ Observe(Event) }
