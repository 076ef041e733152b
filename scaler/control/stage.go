package control

import (
	"log/slog"
	"slices"
)

// stage is where an instance is on its way. These are its moves; besides, it
// can end at every stage:
//
//	starting ---> ready <---> unready
//	   ^            ^            ^
//	   |            |            |      down: it drains
//	   |            |            |      up: the drain is taken back
//	  '--------- draining ---------'
//	                ^
//	                |                   down: the order to stop it is given
//	                v                   up: the platform refuses that order
//	             stopping
//
//	starting, ready, unready ---> taken
//
// Whether an instance is ejected is no stage: the reserver alone decides and
// knows (slots.Stats().Ejected), at once and while the loop is busy. The loop
// follows: attend learns of an ejection from a hook, notes in unreadyFrom when
// that was, and probes; probed calls Restore, which nothing else does. So a ready
// instance is one that the platform or a probe called ready last: it serves
// unless the reserver has ejected it, and one that becomes ready again while it
// is ejected waits for its probe.
type stage uint8

const (
	starting stage = iota // it never was ready
	ready                 // it was called ready last
	unready               // the platform took its readiness back
	draining              // cordoned, until it is empty or its time is over
	stopping              // told to stop by the loop, or by the platform while it drained
	taken                 // told to stop by the platform, although the loop wanted it
	ended                 // it is gone, and forgotten
)

// moves has the stages to which an instance may go from each stage.
var moves = [...][]stage{
	starting: {ready, draining, taken, ended},
	ready:    {unready, draining, taken, ended},
	unready:  {ready, draining, taken, ended},
	draining: {starting, ready, unready, stopping, ended},
	stopping: {draining, ended},
	taken:    {ended},
	ended:    {},
}

func (s stage) String() string {
	return [...]string{"starting", "ready", "unready", "draining", "stopping", "taken", "ended"}[s]
}

// coming says whether it is on its way to ready.
func (s stage) coming() bool { return s == starting || s == unready }

// leaving says whether it is on its way out.
func (s stage) leaving() bool { return s >= draining }

// told says whether it was told to stop. Demand cannot take that back.
func (s stage) told() bool { return s >= stopping }

// moved looks at each move before it is made. Tests put another in its place,
// which panics.
var moved = logMistake

// logMistake logs a move that is not allowed. It is a mistake of the loop, and
// a service goes on in spite of it.
func logMistake(i *instance, to stage) {
	if !i.stage.mayMove(to) {
		i.revision.loop.log().Error("an instance goes from one stage to another as it never should: please report this",
			slog.String("instance", i.ID), slog.String("from", i.stage.String()), slog.String("to", to.String()))
	}
}

func (s stage) mayMove(to stage) bool { return slices.Contains(moves[s], to) }

// move brings i to another stage, with what that means for its slots and for
// those who look at it. Nothing else changes the stage. The loop's lock is held.
func (i *instance) move(to stage) {
	moved(i, to)
	if i.stage == starting {
		i.stopWatch()
	}
	if !i.stage.leaving() && to.leaving() {
		i.before = i.stage
	}
	i.stage = to
	if to.told() || to == draining && i.slots == nil {
		i.stopProbe()
	}
	switch {
	case i.slots == nil || to == ended:
	case to == ready:
		i.slots.Uncordon()
		// The reserver may have told something of it while it was not ready.
		i.revision.loop.look(i.slots)
	case to.told():
		i.slots.Retire(true)
	default:
		i.slots.Cordon()
	}
}

// readiness is the stage of i, or the one it had before it was leaving:
// starting, ready or unready.
func (i *instance) readiness() stage {
	if i.stage.leaving() {
		return i.before
	}
	return i.stage
}

// turn takes note of another readiness of i. One that drains goes on draining,
// and goes there if that is taken back.
func (i *instance) turn(to stage) {
	if i.stage == draining {
		i.before = to
	} else {
		i.move(to)
	}
}

// inUse is how many requests are inside i.
func (i *instance) inUse() int {
	if i.slots == nil {
		return 0
	}
	return i.slots.Stats().InUse
}

// serves says whether i takes requests.
func (i *instance) serves() bool { return i.stage == ready && !i.slots.Stats().Ejected }

// state describes the stage to operators.
func (i *instance) state() InstanceState {
	switch i.stage {
	case starting:
		return InstanceStarting
	case ready:
		if i.serves() {
			return InstanceReady
		}
		return InstanceEjected
	case unready:
		return InstanceEjected
	case draining:
		return InstanceDraining
	case ended:
		return InstanceEnded
	}
	return InstanceStopping
}
