package marathonsim

import (
	"slices"
	"strings"
	"time"
)

// A view is what the API shows of an instance: a copy, made now or a moment
// later, so that a reader who has heard an event may still find the old
// state, and one who reads may find what no event has told yet. It never goes
// back in time.
type view struct {
	instance  string
	app       string
	condition string
	created   time.Time
	health    []healthResult
	task      *task // a copy; nil before the first launch
}

// showLater renews the view of the instance soon, half of the time at once.
func (e *engine) showLater(i *instance) {
	delay := time.Duration(0)
	if e.rng.IntN(2) == 0 {
		delay = e.between(e.cfg.EventDelay)
	}
	if d := e.faults.staleness(); d > 0 {
		delay = d
	}
	if delay == 0 {
		e.publishView(i)
		return
	}
	e.after(delay, func() { e.publishView(i) })
}

func (e *engine) publishView(i *instance) {
	v := &view{instance: i.id, app: i.app, condition: i.condition, created: i.created}
	for n := range i.def.healthChecks {
		if h := i.health[n]; h != nil {
			v.health = append(v.health, *h)
		}
	}
	if i.task != nil {
		t := *i.task
		v.task = &t
	}
	i.view = v
	if i.shown {
		return
	}
	i.shown = true
	e.shown[i.app] = append(e.shown[i.app], i)
}

// hideLater takes an expunged instance out of what is shown.
func (e *engine) hideLater(i *instance) {
	e.after(e.between(e.cfg.EventDelay)+e.faults.staleness(), func() {
		i.shown = true // whatever comes now, it is not shown again
		e.shown[i.app] = slices.DeleteFunc(slices.Clone(e.shown[i.app]), func(o *instance) bool { return o == i })
		if len(e.shown[i.app]) == 0 {
			delete(e.shown, i.app)
		}
	})
}

// views are those of the app that are in the lists of tasks. Instances that
// only wait for an offer are not, but the ended task of such a one is.
func (e *engine) views(app string) []*view {
	var out []*view
	for _, i := range e.shown[app] {
		if i.view.task != nil {
			out = append(out, i.view)
		}
	}
	return out
}

// taskEnded tells whether the task is in a state from which nothing follows.
func (t *task) ended() bool { return isTerminal(conditionOf[t.state]) }

// addresses are those of the task, as status updates carry them.
func (t *task) addresses() []any {
	if t.state == "STAGING" || t.state == "" {
		return []any{}
	}
	return []any{object{{"ipAddress", t.ip}, {"protocol", "IPv4"}}}
}

// taskJSON is a task in the lists. withServicePorts is for GET /v2/tasks, the
// only one that fills them in.
func (e *engine) taskJSON(v *view, withServicePorts bool) object {
	t := v.task
	ports := intsOf(t.ports)
	servicePorts := []int{}
	if t.ended() {
		ports = []int{}
	}
	if withServicePorts {
		for _, p := range t.def.ports {
			servicePorts = append(servicePorts, p.servicePort)
		}
	}
	o := object{
		{"appId", v.app},
		{"id", t.id},
		{"host", t.agent.hostname},
		{"ports", ports},
		{"ipAddresses", t.addresses()},
		{"servicePorts", servicePorts},
		{"slaveId", t.agent.id},
		{"state", "TASK_" + t.state},
	}
	if !t.ended() {
		o = append(o, member{"stagedAt", stamp(t.stagedAt)})
		if !t.startedAt.IsZero() {
			o = append(o, member{"startedAt", stamp(t.startedAt)})
		}
		o = append(o, member{"version", stamp(t.def.version)})
	}
	results := []any{}
	if !t.ended() {
		for _, h := range v.health {
			results = append(results, healthJSON(v.instance, h))
		}
	}
	o = append(o, member{"healthCheckResults", results}, member{"localVolumes", []any{}})
	for _, name := range []string{"region", "zone"} {
		if value, ok := t.agent.attributes[name]; ok {
			o = append(o, member{name, value})
		}
	}
	if e.profile.incarnations {
		o = append(o, member{"role", asString(t.def.fields["role"], "*")})
	}
	return o
}

func healthJSON(instance string, h healthResult) object {
	o := object{{"alive", h.alive()}, {"consecutiveFailures", h.consecutive}}
	if !h.firstSuccess.IsZero() {
		o = append(o, member{"firstSuccess", stamp(h.firstSuccess)})
	}
	if !h.lastFailure.IsZero() {
		o = append(o, member{"lastFailure", stamp(h.lastFailure)}, member{"lastFailureCause", h.cause})
	}
	if !h.lastSuccess.IsZero() {
		o = append(o, member{"lastSuccess", stamp(h.lastSuccess)})
	}
	return append(o, member{"instanceId", instance})
}

// counts are the four numbers of an app.
type counts struct{ staged, running, healthy, unhealthy int }

func (e *engine) counts(app string) counts {
	var c counts
	for _, v := range e.views(app) {
		switch {
		case v.task.ended():
			continue
		case !v.task.status || v.task.state == "STAGING":
			c.staged++
		case v.task.state == "RUNNING":
			c.running++
		}
		if len(v.health) == 0 {
			continue
		}
		alive := true
		for _, h := range v.health {
			alive = alive && h.alive()
		}
		if alive {
			c.healthy++
		} else {
			c.unhealthy++
		}
	}
	return c
}

// appEmbeds is what a reader wants to see with an app.
type appEmbeds struct{ tasks, lastTaskFailure, readiness, taskStats bool }

// readEmbeds reads embed parameters; what is not known is ignored.
func readEmbeds(values []string) appEmbeds {
	var m appEmbeds
	for _, v := range values {
		v = strings.TrimPrefix(strings.TrimPrefix(v, "apps."), "app.")
		switch v {
		case "tasks":
			m.tasks = true
		case "lastTaskFailure":
			m.lastTaskFailure = true
		case "failures":
			m.tasks, m.lastTaskFailure = true, true
		case "readiness":
			m.readiness = true
		case "taskStats":
			m.taskStats = true
		}
	}
	return m
}

// appJSON is an app with its counts and deployments, and what else is wanted.
func (e *engine) appJSON(d *definition, with appEmbeds) object {
	o := d.json()
	c := e.counts(d.id)
	o = append(
		o,
		member{"tasksStaged", c.staged}, member{"tasksRunning", c.running},
		member{"tasksHealthy", c.healthy}, member{"tasksUnhealthy", c.unhealthy},
	)
	locks := []any{}
	for _, dep := range e.locking([]string{d.id}) {
		locks = append(locks, object{{"id", dep.id}})
	}
	o = append(o, member{"deployments", locks})
	if with.readiness {
		results := []any{}
		for _, dep := range e.locking([]string{d.id}) {
			for _, a := range dep.steps[min(dep.current, len(dep.steps)-1)] {
				if a.app == d.id {
					results = append(results, a.readinessJSON()...)
				}
			}
		}
		o = append(o, member{"readinessCheckResults", results})
	}
	if with.tasks {
		tasks := []any{}
		for _, v := range e.views(d.id) {
			tasks = append(tasks, e.taskJSON(v, false))
		}
		o = append(o, member{"tasks", tasks})
	}
	if f := e.run(d.id).lastFailure; f != nil && with.lastTaskFailure {
		o = append(o, member{"lastTaskFailure", object{
			{"appId", d.id},
			{"host", f.host},
			{"message", f.message},
			{"state", f.state},
			{"taskId", f.taskID},
			{"timestamp", stamp(f.at)},
			{"version", stamp(f.version)},
			{"slaveId", f.slaveID},
		}})
	}
	if with.taskStats {
		o = append(o, member{e.profile.tasksStatsField, e.statsJSON(d.id)})
	}
	return o
}

// taskStats counts what became of an app's tasks.
type taskStats struct{ failed, finished int }

func (s *taskStats) count(state string) {
	switch state {
	case "FAILED":
		s.failed++
	case "FINISHED":
		s.finished++
	}
}

// statsJSON has one of Marathon's groups only, that of all tasks, without the
// life times.
func (e *engine) statsJSON(app string) object {
	c := e.counts(app)
	return object{{"totalSummary", object{{"stats", object{{"counts", object{
		{"staged", c.staged}, {"running", c.running}, {"healthy", c.healthy}, {"unhealthy", c.unhealthy},
	}}}}}}}
}
