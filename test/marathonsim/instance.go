package marathonsim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The conditions of an instance, in Marathon's spelling.
const (
	scheduled           = "Scheduled"
	provisioned         = "Provisioned"
	staging             = "Staging"
	starting            = "Starting"
	running             = "Running"
	killing             = "Killing"
	unreachable         = "Unreachable"
	unreachableInactive = "UnreachableInactive"
	killed              = "Killed"
	finished            = "Finished"
	failed              = "Failed"
	errored             = "Error"
	gone                = "Gone"
	dropped             = "Dropped"
)

// The goals of an instance. They are independent of the condition: an
// instance that is to go is Decommissioned and, for as long as its process
// takes, still Running.
const (
	goalRunning        = "Running"
	goalDecommissioned = "Decommissioned"
)

// An instance is one of the copies that an app should have. It keeps its id
// over any number of tasks.
type instance struct {
	id          string
	app         string
	def         *definition // what it was scheduled with
	goal        string
	condition   string
	since       time.Time // of the condition
	created     time.Time
	incarnation int
	task        *task // the newest one; when it has ended, it stays to be seen until the next
	health      map[int]*healthResult
	killRetry   *timer
	killSent    bool
	wipe        bool // what comes after it has a new id
	inactive    *timer

	// view is what the API shows of it: reading and events come from different
	// places in Marathon, and either may be ahead.
	view  *view
	shown bool // it is in engine.shown, or has been
}

// A task is one incarnation of an instance: one launch, one process.
type task struct {
	id        string
	instance  string
	app       string
	def       *definition
	agent     *agent
	ports     []int
	ip        string
	state     string // Mesos' word for it, without TASK_
	message   string
	stagedAt  time.Time
	startedAt time.Time
	status    bool // Mesos has said something of it
	proc      *process
	launch    *timer
	order     killOrder
	released  bool
	reported  string // the last state that went out; an agent that was cut off repeats itself
}

func isTerminal(condition string) bool {
	switch condition {
	case killed, finished, failed, errored, gone, dropped:
		return true
	}
	return false
}

// active is Marathon's own notion: something of it is or may be on an agent.
func (i *instance) active() bool {
	switch i.condition {
	case provisioned, staging, starting, running, killing, unreachable:
		return true
	}
	return false
}

// countsAsStarted is what a deployment counts before it starts more. The goal
// does not matter: an instance that dies slowly still counts.
func (i *instance) countsAsStarted() bool { return i.active() || i.condition == scheduled }

// placedAt is when it came to where it is: what "youngest" goes by.
func (i *instance) placedAt() time.Time {
	if i.task != nil && i.active() {
		if !i.task.startedAt.IsZero() {
			return i.task.startedAt
		}
		return i.task.stagedAt
	}
	return i.created
}

// schedule puts n new instances of the definition into the launch queue.
func (e *engine) schedule(d *definition, n int) {
	r := e.run(d.id)
	for range n {
		i := &instance{
			id: flatID(d.id) + ".instance-" + e.uuid(), app: d.id, def: d, goal: goalRunning,
			condition: scheduled, since: e.now(), created: e.now(),
		}
		if !e.profile.incarnations {
			i.id = flatID(d.id) + ".marathon-" + e.uuid()
		}
		e.startAttempt(r)
		r.instances = append(r.instances, i)
		e.instances[i.id] = i
		e.changed(i)
	}
	if n > 0 {
		e.scheduleOffers()
	}
}

// startAttempt notes since when the app waits for offers.
func (e *engine) startAttempt(r *run) {
	if !slices.ContainsFunc(r.instances, func(i *instance) bool { return i.queued() }) {
		r.since, r.offers = e.now(), offerStats{}
	}
}

func (i *instance) queued() bool { return i.condition == scheduled || i.condition == provisioned }

// newTask makes the next incarnation.
func (e *engine) newTask(i *instance, a *agent) *task {
	i.incarnation++
	t := &task{
		instance: i.id, app: i.app, def: i.def, agent: a, state: "STAGING", stagedAt: e.now(),
	}
	if e.profile.incarnations {
		t.id = fmt.Sprintf("%s._app.%d", i.id, i.incarnation)
	} else {
		t.id = strings.Replace(i.id, ".marathon-", ".", 1)
	}
	e.tasks[t.id] = t
	return t
}

// setCondition is a transition of an instance, with all that follows from it.
func (e *engine) setCondition(i *instance, condition string) {
	i.condition, i.since = condition, e.now()
	e.changed(i)
}

// changed tells of an instance: the journal, the events, what the API shows,
// and the deployments that wait for it.
func (e *engine) changed(i *instance) {
	e.log("instance", i.app, i.id, "%s, goal %s", i.condition, i.goal)
	e.bus.instanceChanged(i)
	e.showLater(i)
	e.pokeLater(i.app)
}

// expunge forgets an instance.
func (e *engine) expunge(i *instance) {
	e.log("instance", i.app, i.id, "expunged")
	i.killRetry.stop()
	i.inactive.stop()
	delete(e.instances, i.id)
	if r := e.runs[i.app]; r != nil {
		r.instances = slices.DeleteFunc(r.instances, func(o *instance) bool { return o == i })
	}
	e.hideLater(i)
	e.pokeLater(i.app)
}

// pokeLater lets deployments look at the app again, after what is happening
// now has happened.
func (e *engine) pokeLater(app string) {
	e.after(0, func() { e.poke(app) })
}

// decommission sets the goal of the instance to be gone, and kills it. The
// goal alone is a change that is told: a scale-down shows itself by an event
// with the condition Running.
func (e *engine) decommission(i *instance) {
	if i.goal == goalDecommissioned {
		if !i.killSent {
			e.kill(i)
		}
		return
	}
	i.goal = goalDecommissioned
	e.changed(i)
	e.kill(i)
}

// kill orders the task of the instance to end. Orders get lost, so they are
// repeated until the task has ended.
func (e *engine) kill(i *instance) {
	if i.condition == scheduled || isTerminal(i.condition) {
		if i.goal == goalDecommissioned {
			e.expunge(i)
		}
		return
	}
	i.killSent = true
	i.killRetry.stop()
	i.killRetry = e.after(e.cfg.KillRetry, func() {
		if e.leading && e.instances[i.id] == i && !isTerminal(i.condition) {
			e.log("kill", i.app, i.id, "the kill is repeated")
			e.kill(i)
		}
	})
	if t := i.task; t != nil {
		e.orderKill(t)
	}
}

// update is a status update from Mesos: a task is now in that state.
func (e *engine) update(t *task, state, message string) {
	e.whenLeading(func() { e.applyUpdate(t, state, message) })
}

var conditionOf = map[string]string{
	"STAGING": staging, "STARTING": starting, "RUNNING": running, "KILLING": killing, "KILLED": killed,
	"FINISHED": finished, "FAILED": failed, "ERROR": errored, "GONE": gone, "DROPPED": dropped,
	"UNREACHABLE": unreachable,
}

func (e *engine) applyUpdate(t *task, state, message string) {
	condition := conditionOf[state]
	i := e.instances[t.instance]
	if i == nil || i.task != t {
		e.unknownTask(t, condition)
		return
	}
	if isTerminal(i.condition) || i.condition == scheduled {
		return // it had ended already
	}
	t.state, t.message, t.status = state, message, true
	if state == "RUNNING" && t.startedAt.IsZero() {
		t.startedAt = e.now()
	}
	e.log("task", t.app, t.id, "TASK_%s %s", state, message)
	e.bus.statusUpdate(t)
	e.run(t.app).stats.count(state)
	i.inactive.stop()

	switch {
	case state == "UNREACHABLE":
		e.setCondition(i, unreachable)
		e.becomeInactiveLater(i)
		return
	case !isTerminal(condition):
		e.setCondition(i, condition)
		e.launched(i.app)
		if state == "RUNNING" && i.goal == goalDecommissioned {
			e.kill(i) // it was to be gone, and is back
		}
		return
	}
	e.ended(i, t, condition)
}

// ended is the end of a task.
func (e *engine) ended(i *instance, t *task, condition string) {
	r := e.run(i.app)
	if condition == failed || condition == errored {
		r.lastFailure = &taskFailure{
			taskID: t.id, state: "TASK_" + t.state, message: t.message, host: t.agent.hostname, slaveID: t.agent.id,
			version: t.def.version, at: e.now(),
		}
	}
	if condition != killed && i.goal == goalRunning {
		// Back-off grows on every end but a kill; an exit with 0 is no better.
		e.addDelay(i.def)
	}
	i.killRetry.stop()
	i.killSent = false
	i.health = nil
	e.setCondition(i, condition)

	if i.goal == goalDecommissioned {
		e.expunge(i)
	} else if i.wipe || !e.profile.incarnations {
		e.expunge(i)
	} else {
		// The same instance again, when there is an offer; until then its ended
		// task stays in the lists.
		e.startAttempt(r)
		i.def = e.currentDefinition(i)
		e.setCondition(i, scheduled)
		e.scheduleOffers()
	}
	e.scaleCheck(i.app)
}

// currentDefinition is what the next incarnation is made from: the instance's
// own version as long as that is not an old configuration.
func (e *engine) currentDefinition(i *instance) *definition {
	if d := e.root[i.app]; d != nil && d.lastConfig.Equal(i.def.lastConfig) && !e.locked(i.app) {
		return d
	}
	return i.def
}

// unknownTask is word of a task that Marathon does not have any more.
func (e *engine) unknownTask(t *task, condition string) {
	e.log("task", t.app, t.id, "TASK_%s of an instance that is not known", strings.ToUpper(condition))
	switch {
	case isTerminal(condition):
		e.bus.unknownTerminated(t, condition)
	case condition == running:
		e.orderKill(t)
	}
}

// becomeInactiveLater gives an unreachable instance up after the time that
// the app grants. From then on it does not count, and is replaced.
func (e *engine) becomeInactiveLater(i *instance) {
	if i.def.unreachableNever {
		return
	}
	i.inactive = e.after(i.def.inactiveAfter, func() {
		e.whenLeading(func() {
			if e.instances[i.id] == i && i.condition == unreachable {
				e.setCondition(i, unreachableInactive)
				e.scaleCheck(i.app)
			}
		})
	})
}

// expungeUnreachable forgets those that are unreachable for too long; their
// processes may live on, and come back as unknown tasks.
func (e *engine) expungeUnreachable() {
	for _, id := range sortedKeys(e.instances) {
		i := e.instances[id]
		if i.condition == unreachableInactive && e.now().After(i.since.Add(i.def.expungeAfter)) {
			e.expunge(i)
		}
	}
}

// killOverdue gives up launches of which nothing has been heard.
func (e *engine) killOverdue() {
	for _, id := range sortedKeys(e.instances) {
		i := e.instances[id]
		if i.condition == provisioned && e.now().After(i.since.Add(e.cfg.LaunchConfirmTimeout)) {
			e.kill(i)
		}
	}
}
