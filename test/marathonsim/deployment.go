package marathonsim

import (
	"maps"
	"slices"
	"time"
)

// A deployment brings apps from one definition to another, step by step. It
// locks the apps that it affects until it is finished, and it has no end of
// its own: what cannot succeed goes on until it is cancelled.
type deployment struct {
	e        *engine
	id       string
	version  time.Time
	steps    [][]*action
	current  int // index of the running step
	affected []string
	original map[string]*definition // of every app that changes; nil when it is new
	target   map[string]*definition // nil when it goes
	over     bool
}

// The kinds of actions.
const (
	startApplication   = "StartApplication"
	stopApplication    = "StopApplication"
	scaleApplication   = "ScaleApplication"
	restartApplication = "RestartApplication"
)

// maxRunningDeployments is Marathon's --max_running_deployments.
const maxRunningDeployments = 100

// plan makes the steps from the changes: stop what goes, start what is new
// with nothing, then scale and restart in the order of the dependencies,
// those of equal depth together.
func (e *engine) plan(changes map[string]*definition, named map[string][]string) *deployment {
	d := &deployment{
		e: e, id: e.uuid(), version: e.nextVersion(),
		original: map[string]*definition{}, target: maps.Clone(changes),
	}
	var stop, start []*action
	layers := map[int][]*action{}
	for _, id := range sortedKeys(changes) {
		before, after := e.root[id], changes[id]
		d.original[id] = before
		switch {
		case after == nil:
			stop = append(stop, d.action(stopApplication, id, before))
		case before == nil:
			start = append(start, d.action(startApplication, id, after))
			fallthrough
		case before.sameConfig(after) && before.lastConfig.Equal(after.lastConfig) || after.instances == 0:
			a := d.action(scaleApplication, id, after)
			a.named = named[id]
			depth := e.depth(after, changes, map[string]bool{})
			layers[depth] = append(layers[depth], a)
		default:
			depth := e.depth(after, changes, map[string]bool{})
			layers[depth] = append(layers[depth], d.action(restartApplication, id, after))
		}
		d.affected = append(d.affected, id)
	}
	for _, step := range [][]*action{stop, start} {
		if len(step) > 0 {
			d.steps = append(d.steps, step)
		}
	}
	for _, depth := range slices.Sorted(maps.Keys(layers)) {
		d.steps = append(d.steps, layers[depth])
	}
	return d
}

func (d *deployment) action(kind, app string, def *definition) *action {
	return &action{e: d.e, deployment: d, kind: kind, app: app, def: def}
}

// depth is the length of the longest way of dependencies below the app.
func (e *engine) depth(d *definition, changes map[string]*definition, seen map[string]bool) int {
	if d == nil || seen[d.id] {
		return 0
	}
	seen[d.id] = true
	defer delete(seen, d.id)
	deepest := 0
	for _, id := range d.dependencies {
		dep := e.root[id]
		if c, ok := changes[id]; ok {
			dep = c
		}
		deepest = max(deepest, 1+e.depth(dep, changes, seen))
	}
	return deepest
}

// locking are the deployments that hold any of the apps.
func (e *engine) locking(apps []string) []*deployment {
	var out []*deployment
	for _, d := range e.deployments {
		if slices.ContainsFunc(d.affected, func(id string) bool { return slices.Contains(apps, id) }) {
			out = append(out, d)
		}
	}
	return out
}

func (e *engine) locked(app string) bool { return len(e.locking([]string{app})) > 0 }

// A change is what a caller wants of the apps: new definitions by id, nil for
// one that is to go.
type change struct {
	apps  map[string]*definition
	named map[string][]string // instances that are to go first
	force bool
	on    string // the group or app whose name the group event carries
}

// deploy carries a change out, or says why not. What changes nothing is a
// deployment with no steps that has succeeded at once, whatever is going on
// with the app: the definition is what it should be already.
func (e *engine) deploy(c change) (*deployment, *response) {
	d := e.plan(c.apps, c.named)
	if len(d.steps) == 0 {
		e.bus.groupChanged(c.on, d.version)
		e.bus.deploymentOver(d, "")
		return d, nil
	}
	conflicts := e.locking(d.affected)
	if len(conflicts) > 0 && !c.force {
		return nil, lockedResponse(conflicts)
	}
	if len(e.deployments)-len(conflicts) >= e.cfg.MaxRunningDeployments {
		return nil, tooManyDeployments(e.cfg.MaxRunningDeployments)
	}
	for _, other := range conflicts {
		e.cancel(other)
	}
	for _, id := range sortedKeys(c.apps) {
		def := c.apps[id]
		if def == nil {
			delete(e.root, id)
			delete(e.versions, id)
			continue
		}
		e.root[id] = def
		e.versions[id] = append(e.versions[id], def)
	}
	e.log("deployment", "", d.id, "accepted, for %v", d.affected)
	e.deployments = append(e.deployments, d)
	e.bus.groupChanged(c.on, d.version)
	// The answer to the caller goes out before the first step has an effect.
	e.after(0, d.start)
	return d, nil
}

// start begins with the first step, also for a new leader: every action looks
// at what there is already.
func (d *deployment) start() {
	if d.over || !d.e.leading {
		return
	}
	d.current = 0
	d.startStep()
}

func (d *deployment) startStep() {
	if d.current >= len(d.steps) {
		d.finish()
		return
	}
	d.e.log("deployment", "", d.id, "step %d of %d", d.current+1, len(d.steps))
	d.e.bus.deploymentStep("deployment_info", d)
	for _, a := range d.steps[d.current] {
		a.reset()
	}
	for _, a := range d.steps[d.current] {
		a.begin()
	}
	d.check()
}

// check goes on to the next step when all actions of this one are done.
func (d *deployment) check() {
	if d.over || !d.e.leading || d.current >= len(d.steps) {
		return
	}
	for _, a := range d.steps[d.current] {
		if !a.done {
			return
		}
	}
	d.halt()
	d.e.bus.deploymentStep("deployment_step_success", d)
	d.current++
	d.startStep()
}

// halt stops the timers of the actions.
func (d *deployment) halt() {
	for _, step := range d.steps {
		for _, a := range step {
			a.halt()
		}
	}
}

func (d *deployment) finish() {
	d.remove()
	d.e.log("deployment", "", d.id, "finished")
	d.e.bus.deploymentOver(d, "")
	for _, id := range d.affected {
		if d.target[id] == nil {
			d.e.forget(id)
		}
	}
}

// remove takes the deployment and its locks away.
func (d *deployment) remove() {
	d.over = true
	d.halt()
	d.e.deployments = slices.DeleteFunc(d.e.deployments, func(o *deployment) bool { return o == d })
}

// cancel ends a deployment where it is. Goals that were set stay set, and
// what is in the launch queue stays there.
func (e *engine) cancel(d *deployment) {
	d.remove()
	e.log("deployment", "", d.id, "cancelled")
	e.bus.deploymentOver(d, "The upgrade has been cancelled")
}

// rollback is the change that undoes a deployment.
func (d *deployment) rollback() change {
	c := change{apps: map[string]*definition{}, force: true, on: "/"}
	for id, before := range d.original {
		now := d.e.root[id]
		switch {
		case before == nil && now == nil, before == now:
			continue
		case before == nil:
			c.apps[id] = nil
		default:
			back := *before
			back.version = d.e.nextVersion()
			back.lastScaling = back.version
			if now == nil || !now.sameConfig(&back) {
				back.lastConfig = back.version
			} else {
				back.lastConfig = now.lastConfig
			}
			c.apps[id] = &back
		}
		c.on = parentGroup(id)
	}
	return c
}

// forget drops what there is of an app that has been deleted.
func (e *engine) forget(app string) {
	if e.root[app] != nil {
		return
	}
	e.stopCheckers(app, true)
	if r := e.runs[app]; r != nil && len(r.instances) == 0 {
		delete(e.runs, app)
	}
}

// poke lets the deployments that hold the app look again.
func (e *engine) poke(app string) {
	if !e.leading {
		return
	}
	for _, d := range e.locking([]string{app}) {
		if d.over || d.current >= len(d.steps) {
			continue
		}
		for _, a := range d.steps[d.current] {
			if a.app == app && !a.done && a.begun {
				a.look()
			}
		}
		d.check()
	}
}
