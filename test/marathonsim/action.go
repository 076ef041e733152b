package marathonsim

import (
	"math"
	"slices"
	"time"
)

// An action is one app's part of a step.
type action struct {
	e          *engine
	deployment *deployment
	kind       string
	app        string
	def        *definition
	named      []string // the instances that a caller sentenced

	held        bool // by the simulator: it does not finish
	begun, done bool
	sync        *timer
	readiness   map[string]*readinessState // by task id

	// Of a scaling: what it waits for to be gone, then how many new instances
	// it waits for to be there.
	victims  []*instance
	starting bool
	wanted   int

	// Of a restart.
	old         []*instance
	toKill      []*instance
	replaced    map[string]bool // new instances that have cost an old one its life
	counted     map[string]bool // new instances of which the start counts
	started     int
	maxCapacity int
}

// reset forgets an earlier run of the action, under another leader.
func (a *action) reset() {
	a.halt()
	*a = action{
		e: a.e, deployment: a.deployment, kind: a.kind, app: a.app, def: a.def, named: a.named, held: a.held,
		readiness: map[string]*readinessState{}, replaced: map[string]bool{}, counted: map[string]bool{},
	}
}

func (a *action) halt() {
	a.sync.stop()
	for _, r := range a.readiness {
		r.timer.stop()
	}
}

func (a *action) begin() {
	a.begun = true
	if a.kind != stopApplication {
		a.e.ensureCheckers(a.def)
	}
	switch a.kind {
	case startApplication:
		a.done = true
	case stopApplication:
		a.e.stopCheckers(a.app, true)
		a.victims = slices.Clone(a.e.run(a.app).instances)
		for _, i := range a.victims {
			a.e.decommission(i)
		}
	case scaleApplication:
		a.victims = a.e.victims(a.app, a.def.instances, a.named)
		for _, i := range a.victims {
			a.e.decommission(i)
		}
		// Those that a deployment before this one sentenced die as well, but
		// this one does not wait for them.
	case restartApplication:
		a.beginRestart()
	}
	a.look()
}

// look is called whenever something of the app has changed.
func (a *action) look() {
	if a.done || a.held {
		return
	}
	switch a.kind {
	case stopApplication:
		if a.allGone(a.victims) {
			a.e.bus.appTerminated(a.app)
			a.finish()
		}
	case scaleApplication:
		a.lookAtScaling()
	case restartApplication:
		a.lookAtRestart()
	}
}

func (a *action) finish() {
	a.halt()
	a.done = true
}

// allGone tells whether of these instances nothing holds a deployment up: an
// unreachable one does not, since its end cannot be foreseen.
func (a *action) allGone(list []*instance) bool {
	for _, i := range list {
		if a.e.instances[i.id] != i || isTerminal(i.condition) {
			continue
		}
		if i.condition == unreachable || i.condition == unreachableInactive {
			continue
		}
		return false
	}
	return true
}

// lookAtScaling kills first and starts afterwards. How many it starts it
// decides once, and then every instance counts that is not gone, one that
// was killed by an earlier deployment and takes its time as well: then there
// is nothing to start, and the deployment has succeeded with nothing running.
func (a *action) lookAtScaling() {
	if !a.starting {
		if !a.allGone(a.victims) {
			return
		}
		a.starting = true
		a.wanted = max(0, a.def.instances-a.startedOrDying())
		a.e.schedule(a.def, a.wanted)
		if a.wanted > 0 {
			a.sync = a.e.after(time.Second, a.resync)
		}
	}
	a.watchReadiness()
	if len(a.inService()) >= a.wanted {
		a.finish()
	}
}

func (a *action) startedOrDying() int {
	n := 0
	for _, i := range a.e.run(a.app).instances {
		if i.countsAsStarted() {
			n++
		}
	}
	return n
}

func (a *action) resync() {
	if a.done || !a.e.leading {
		return
	}
	a.e.schedule(a.def, max(0, a.def.instances-a.startedOrDying()))
	a.sync = a.e.after(5*time.Second, a.resync)
}

// inService are the instances of the new version that are running, healthy if
// there are health checks, and ready if there are readiness checks. Older
// ones do not count, however well they are.
func (a *action) inService() []*instance {
	var out []*instance
	for _, i := range a.e.run(a.app).instances {
		if i.def.version.Equal(a.def.version) && i.condition == running && i.goal == goalRunning &&
			(len(a.def.healthChecks) == 0 || i.healthy()) && a.ready(i) {
			out = append(out, i)
		}
	}
	return out
}

// beginRestart computes how far the app may go below and above its number
// while it is replaced.
func (a *action) beginRestart() {
	n := a.def.instances
	active := 0
	for _, i := range a.e.run(a.app).instances {
		if i.def.version.Equal(a.def.version) {
			a.counted[i.id] = true
			a.started++
			active++
			continue
		}
		if i.goal != goalRunning {
			continue
		}
		a.old = append(a.old, i)
		if i.active() {
			active++
		}
	}
	// The ones that are not there yet go first: they cost nothing.
	a.toKill = slices.Clone(a.old)
	slices.SortStableFunc(a.toKill, func(x, y *instance) int { return boolInt(x.active()) - boolInt(y.active()) })

	minHealthy := int(math.Ceil(float64(n) * a.def.minHealth))
	a.maxCapacity = int(float64(n) * (1 + a.def.maxOver))
	atOnce := max(0, len(a.old)-minHealthy)
	if minHealthy == a.maxCapacity && a.maxCapacity <= active {
		a.maxCapacity++
	}
	a.e.resetDelay(a.app)
	for range atOnce {
		a.killNextOld()
	}
	a.launchMore()
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (a *action) killNextOld() {
	if len(a.toKill) > 0 {
		i := a.toKill[0]
		a.toKill = a.toKill[1:]
		a.e.decommission(i)
	}
}

func (a *action) oldLeft() []*instance {
	var out []*instance
	for _, i := range a.old {
		if !a.allGone([]*instance{i}) {
			out = append(out, i)
		}
	}
	return out
}

func (a *action) launchMore() {
	room := max(0, a.maxCapacity-len(a.oldLeft())-a.started)
	n := min(room, max(0, a.def.instances-a.started))
	before := len(a.e.run(a.app).instances)
	a.e.schedule(a.def, n)
	for _, i := range a.e.run(a.app).instances[before:] {
		a.counted[i.id] = true
	}
	a.started += n
}

// lookAtRestart kills one old instance for each new one that is in service.
func (a *action) lookAtRestart() {
	a.watchReadiness()
	for id := range a.counted {
		if a.e.instances[id] == nil {
			delete(a.counted, id)
			a.started--
		}
	}
	ready := a.inService()
	for _, i := range ready {
		if !a.replaced[i.id] {
			a.replaced[i.id] = true
			a.killNextOld()
		}
	}
	a.launchMore()
	if len(ready) >= a.def.instances && len(a.toKill) == 0 && len(a.oldLeft()) == 0 {
		a.finish()
	}
}
