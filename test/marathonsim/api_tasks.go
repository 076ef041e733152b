package marathonsim

import (
	"net/http"
	"regexp"
	"strings"
)

// appTasksResource is /v2/apps/{id}/tasks.
func (s *Sim) appTasksResource(q *request, id string) *response {
	if s.denied(id) {
		return forbidden()
	}
	switch q.method {
	case http.MethodGet:
		if s.engine.root[id] == nil {
			return noSuchApp(id)
		}
		tasks := []any{}
		for _, v := range s.engine.views(id) {
			tasks = append(tasks, s.engine.taskJSON(v, false))
		}
		return answer(http.StatusOK, object{{"tasks", tasks}})
	case http.MethodDelete:
		return s.deleteAppTasks(q, id)
	}
	return &response{status: http.StatusMethodNotAllowed}
}

// listTasks is GET /v2/tasks, the one that knows service ports.
func (s *Sim) listTasks(q *request) *response {
	wanted := append(q.query["status"], q.query["status[]"]...)
	tasks := []any{}
	for _, id := range sortedKeys(s.engine.shown) {
		if s.denied(id) {
			continue
		}
		for _, v := range s.engine.views(id) {
			if len(wanted) > 0 && !statusMatches(v.task, wanted) {
				continue
			}
			tasks = append(tasks, s.engine.taskJSON(v, true))
		}
	}
	return answer(http.StatusOK, object{{"tasks", tasks}})
}

func statusMatches(t *task, wanted []string) bool {
	for _, w := range wanted {
		switch {
		case w == "running" && t.state == "RUNNING":
			return true
		case w == "staging" && (t.state == "STAGING" || t.state == "STARTING" || !t.status):
			return true
		}
	}
	return false
}

// A taskID is read to find its app and instance; the shapes differ with the
// version.
var (
	incarnationID = regexp.MustCompile(`^(.+)\.(instance-[^_.]+|marathon-[^_.]+)(?:[._](.+?)(?:\.(\d+))?)?$`)
	plainID       = regexp.MustCompile(`^(.+)\.([^.]+)$`)
)

// findInstance resolves a task id that a caller names. Its incarnation does
// not matter to Marathon: a kill of it is a kill of the instance.
func (e *engine) findInstance(taskID string) *instance {
	for _, i := range e.instances {
		if i.task != nil && i.task.id == taskID {
			return i
		}
	}
	if m := incarnationID.FindStringSubmatch(taskID); m != nil {
		return e.instances[m[1]+"."+m[2]]
	}
	return nil
}

func validTaskID(id string) bool {
	return incarnationID.MatchString(id) || plainID.MatchString(id)
}

// killable are those of the instances of which there is something to kill.
func killable(list []*instance) []*instance {
	var out []*instance
	for _, i := range list {
		if i.active() || i.condition == unreachableInactive {
			out = append(out, i)
		}
	}
	return out
}

// deleteTask is DELETE /v2/apps/{id}/tasks/{taskId}.
func (s *Sim) deleteTask(q *request, app, taskID string) *response {
	e := s.engine
	if s.denied(app) {
		return forbidden()
	}
	if bad := scaleAndWipe(q); bad != nil {
		return bad
	}
	if !validTaskID(taskID) {
		return badTaskID(taskID)
	}
	i := e.findInstance(taskID)
	if i != nil && i.app != app {
		i = nil
	}
	if q.flag("scale", false) {
		if e.root[app] == nil || len(e.run(app).instances) == 0 {
			return message(http.StatusNotFound, "Path '%s' does not exist", app)
		}
		return s.killAndScale(q, []*instance{i})
	}
	if e.root[app] == nil {
		return noSuchApp(app)
	}
	if i == nil || i.task == nil {
		return message(http.StatusNotFound, "Task '%s' does not exist", taskID)
	}
	if i.view == nil {
		e.publishView(i)
	}
	r := answer(http.StatusOK, object{{"task", e.taskJSON(i.view, false)}})
	r.wait = s.killOrWipe(q, []*instance{i})
	return r
}

// deleteAppTasks is DELETE /v2/apps/{id}/tasks.
func (s *Sim) deleteAppTasks(q *request, app string) *response {
	e := s.engine
	if bad := scaleAndWipe(q); bad != nil {
		return bad
	}
	host := q.query.Get("host")
	var list []*instance
	for _, i := range killable(e.run(app).instances) {
		if host == "" || host == "*" || i.task != nil && i.task.agent.hostname == host {
			list = append(list, i)
		}
	}
	if q.flag("scale", false) {
		if e.root[app] == nil || len(e.run(app).instances) == 0 {
			return message(http.StatusNotFound, "Path '%s' does not exist", app)
		}
		return s.killAndScale(q, list)
	}
	if e.root[app] == nil {
		return noSuchApp(app)
	}
	tasks := []any{}
	for _, i := range list {
		if i.view != nil && i.view.task != nil {
			tasks = append(tasks, e.taskJSON(i.view, false))
		}
	}
	r := answer(http.StatusOK, object{{"tasks", tasks}})
	r.wait = s.killOrWipe(q, list)
	return r
}

// deleteTasks is POST /v2/tasks/delete: ids of any number of apps. An id of
// which there is nothing left is no error, one that is no id is.
func (s *Sim) deleteTasks(q *request) *response {
	e := s.engine
	v, bad := readJSON(q)
	if bad != nil {
		return bad
	}
	if bad := scaleAndWipe(q); bad != nil {
		return bad
	}
	ids, ok := asMap(v)["ids"].([]any)
	if !ok {
		return s.wrongTypes([]violation{{"/ids", []string{"error.path.missing"}}})
	}
	var list []*instance
	for _, x := range ids {
		id := asString(x, "")
		if !validTaskID(id) {
			return badTaskID(id)
		}
		if i := e.findInstance(id); i != nil {
			if s.denied(i.app) {
				return forbidden()
			}
			list = append(list, i)
		}
	}
	if q.flag("scale", false) {
		return s.killAndScale(q, list)
	}
	tasks := []any{}
	for _, i := range killable(list) {
		if i.view != nil && i.view.task != nil {
			tasks = append(tasks, e.taskJSON(i.view, true))
		}
	}
	r := answer(http.StatusOK, object{{"tasks", tasks}})
	r.wait = s.killOrWipe(q, killable(list))
	return r
}

func scaleAndWipe(q *request) *response {
	if q.flag("scale", false) && q.flag("wipe", false) {
		return message(http.StatusBadRequest, "You cannot use scale and wipe at the same time.")
	}
	return nil
}

func badTaskID(id string) *response {
	return message(http.StatusBadRequest, "Invalid task id '%s'. [is not a task id]", strings.TrimSpace(id))
}

// killAndScale names the victims of a scale-down. Only those count that are
// there and not dying already, so that what is gone changes nothing.
func (s *Sim) killAndScale(q *request, list []*instance) *response {
	e := s.engine
	c := change{apps: map[string]*definition{}, named: map[string][]string{}, force: q.flag("force", false), on: "/"}
	fewer := map[string]int{}
	for _, i := range list {
		if i == nil {
			continue
		}
		c.named[i.app] = append(c.named[i.app], i.id)
		if i.active() && i.condition != killing {
			fewer[i.app]++
		}
	}
	for _, app := range sortedKeys(fewer) {
		before := e.root[app]
		if before == nil {
			continue
		}
		d := *before
		d.instances = max(0, before.instances-fewer[app])
		if d.instances == before.instances {
			continue
		}
		d.version = e.nextVersion()
		d.lastScaling = d.version
		c.apps[app] = &d
	}
	dep, bad := e.deploy(c)
	if bad != nil {
		return bad
	}
	return deployed(http.StatusOK, dep)
}

// killOrWipe ends tasks without a change of the app's number: others take
// their place, the next incarnation of the same instance or, with wipe, a new
// instance; then the answer waits for the end.
func (s *Sim) killOrWipe(q *request, list []*instance) chan struct{} {
	e := s.engine
	wipe := q.flag("wipe", false)
	for _, i := range list {
		i.wipe = i.wipe || wipe
		if wipe {
			i.goal = goalDecommissioned
			e.changed(i)
		}
		e.kill(i)
	}
	if !wipe {
		return nil
	}
	done := make(chan struct{})
	var look func()
	look = func() {
		for _, i := range list {
			if e.instances[i.id] == i {
				e.after(e.cfg.OfferInterval/20, look)
				return
			}
		}
		close(done)
	}
	look()
	return done
}
