package marathon

import (
	"maps"
	"slices"

	"github.com/caddy-usher/usher/scaler"
)

// report tells every runner what there is of its own. The lock is held.
func (a *app) report() {
	if !a.known && a.outage == nil {
		return
	}
	// Learn first whether a task was stopped on request: any other end is a
	// failure.
	early := false
	for _, t := range a.tasks {
		if t.phase == scaler.PhaseEnded && t.stop && !t.stopped {
			early, t.stopped = true, true
		}
		t.stopped = t.stopped || t.phase == scaler.PhaseStopping
	}
	if early {
		a.tell(func(t *task) bool { return t.phase == scaler.PhaseEnded && t.stop })
	}
	a.tell(func(*task) bool { return false })
	for id, t := range a.tasks {
		if t.phase == scaler.PhaseEnded {
			if t.failure != nil {
				a.lastDeath = t.failure
			}
			delete(a.tasks, id)
		}
	}
}

// tell sends a report to every runner, in which the tasks that stopping names
// are about to stop.
func (a *app) tell(stopping func(*task) bool) {
	older := 0
	for _, r := range a.runners {
		rep := scaler.Report{Trouble: a.trouble()}
		own := 0
		for _, id := range slices.Sorted(maps.Keys(a.tasks)) {
			t := a.tasks[id]
			if t.owner != r {
				continue
			}
			i := scaler.Instance{
				ID: t.name, Phase: t.phase, Since: t.since, Failure: t.failure,
				Unhealthy: t.unhealthy,
				// One that is not on the list may have been replaced already: to
				// count it would be to stop the one that has its place.
				Extra: t.extra || !t.absent.IsZero(),
			}
			if t.address != "" {
				i.Network, i.Address = "tcp", t.address
			}
			if stopping(t) {
				i.Phase, i.Failure = scaler.PhaseStopping, nil
			}
			if t.counted() && !t.extra {
				own++
			}
			rep.Instances = append(rep.Instances, i)
		}
		// The number is the app's. An earlier revision wants no more than it
		// has; the rest is the newest one's.
		rep.Desired = own
		if r == a.newest() {
			rep.Desired = max(0, a.state.instances-older)
		}
		older += own
		r.env.Report(rep)
	}
}

// trouble is what concerns no single task: what weighs most.
func (a *app) trouble() *scaler.Failure {
	for _, f := range []*scaler.Failure{a.outage, a.blocked, a.crashing, a.starved} {
		if f != nil {
			return f
		}
	}
	return nil
}
