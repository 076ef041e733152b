package marathon

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// step is one change of an app. An order is carried out step by step.
type step struct {
	kind   stepKind
	number int      // for setNumber
	ids    []string // for stopThese and replaceThese
	before int      // the number that was in force
}

type stepKind uint8

const (
	nothing      stepKind = iota
	setNumber             // PATCH instances
	stopThese             // stop the tasks, and lower the number by as many
	replaceThese          // stop the tasks, and leave the number
)

// after is the number that the step leaves behind.
func (s step) after() int {
	switch s.kind {
	case setNumber:
		return s.number
	case stopThese:
		return max(0, s.before-len(s.ids))
	case nothing, replaceThese:
	}
	return s.before
}

// direction is what a deployment of Usher's making does.
type direction uint8

const (
	up         direction = iota // may be given up: what it has queued stays queued
	down                        // has to be awaited: what it stops is stopped
	restarting                  // has to be awaited, or an upgrade stays half done
)

func (s step) direction() direction {
	if s.kind == setNumber && s.number >= s.before {
		return up
	}
	return down
}

// plan returns the next step towards an order, or why it must not be made now.
// The lock is held, and the state is fresh.
func (a *app) plan(r *runner, o scaler.Order) (step, *scaler.Failure) {
	number := a.state.instances
	s := step{before: number}
	victims := a.victims(r, o.Stop)
	running, others, unnamed := 0, 0, 0
	for id, t := range a.tasks {
		if !t.counted() {
			continue
		}
		running++
		if t.owner != r && !t.extra {
			others++
		}
		if t.owner == r && !t.extra && !slices.Contains(victims, id) {
			unnamed++
		}
	}
	// The number is the app's, and the order is the revision's. An earlier
	// revision only gives back what it has.
	target := number - len(victims)
	if r == a.newest() {
		target = o.Instances + others
	}
	target = max(0, target)

	if listed := a.listed(); listed > number && len(victims) > 0 && !a.state.locked() {
		if a.unsettled(time.Now()) {
			// Which of them are left when the list is right is not known.
			return s, &scaler.Failure{
				Reason: scaler.ReasonConflict, Short: "more tasks are listed than the app is to have",
				Detail: fmt.Sprintf("app %s is to have %d instances, and %d are listed, maybe because the list is behind; the order is given again in a moment", a.id, number, listed),
				Err:    scaler.ErrLater,
			}
		}
		// A task that was lost has come back after it was replaced. Naming one
		// now would lower the number below what is wanted, and of those left
		// over Marathon would choose the next to stop. What runs becomes the
		// number first, which starts nothing. A task that is not on the list
		// may have ended: with it, the number would start one, and the next
		// order would find one more of them, and so on.
		s.kind, s.number = setNumber, listed
		return s, nil
	}
	fewer := min(len(victims), max(0, number-target))
	pending := a.state.queued
	if !a.state.queueKnown {
		pending = max(0, number-running)
	}
	switch {
	case target == 0 && number > 0 && unnamed == 0 && others == 0:
		s.kind = setNumber
	case target < number && pending > 0 && (fewer > 0 || running <= target):
		// Marathon would stop one that runs before one that is queued, and
		// what is queued cannot be named.
		return s, &scaler.Failure{
			Reason: scaler.ReasonUnschedulable, Short: "instances are still queued at Marathon",
			Detail: fmt.Sprintf("app %s is to go from %d to %d instances, but %d of them are queued, and Marathon would stop running ones first; the order is given again when they run", a.id, number, target, pending),
		}
	case fewer > 0:
		s.kind, s.ids = stopThese, victims[:fewer]
	case len(victims) > 0:
		s.kind, s.ids = replaceThese, victims
	case target > number:
		s.kind, s.number = setNumber, target
	case target < number && running <= target:
		// What is above the target does not run, so nothing that runs is hit.
		s.kind, s.number = setNumber, target
	}
	// Else there is nothing to do, or there are tasks that the order does not
	// know of: it was given before they were reported, and the next one knows.
	return s, nil
}

// toStop marks t as told to stop.
func (t *task) toStop() {
	t.stop, t.phase, t.stopAt = true, scaler.PhaseStopping, time.Now()
}

// victims returns those of the ids that are to be stopped at Marathon. What
// Marathon has lost, or stops already, is let go without a word to it. The
// lock is held.
func (a *app) victims(r *runner, ids []string) []string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(a.tasks)) {
		t := a.tasks[id]
		switch {
		case !slices.Contains(ids, t.name) || t.owner != r || t.stop || t.phase == scaler.PhaseEnded:
		case !t.counted():
			t.toStop()
		default:
			all = append(all, id)
		}
	}
	return all
}

// did takes note of a step that Marathon has accepted, and reports it. The
// lock is held.
func (a *app) did(s step, deployment, version string) {
	if deployment != "" {
		a.own[deployment] = s.direction()
	}
	ids := s.ids
	if s.kind == setNumber && s.number == 0 {
		ids = slices.Sorted(maps.Keys(a.tasks))
	}
	for _, id := range ids {
		if t := a.tasks[id]; t != nil && t.phase != scaler.PhaseEnded {
			t.toStop()
		}
	}
	a.state.instances = s.after()
	if v := when(version); !v.IsZero() {
		a.expectAfter(v)
	}
	a.calm = false
	a.blocked = nil
	a.report()
}
