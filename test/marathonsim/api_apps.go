package marathonsim

import (
	"net/http"
	"slices"
	"strings"
)

// appsResource is /v2/apps.
func (s *Sim) appsResource(q *request) *response {
	switch q.method {
	case http.MethodGet:
		return s.listApps(q)
	case http.MethodPost:
		return s.createApp(q)
	case http.MethodPut, http.MethodPatch:
		return s.updateApps(q)
	}
	return &response{status: http.StatusMethodNotAllowed}
}

func (s *Sim) listApps(q *request) *response {
	selector, err := parseSelector(q.query.Get("label"))
	if err != nil {
		return message(http.StatusUnprocessableEntity, "%s", err)
	}
	with := readEmbeds(q.query["embed"])
	apps := []any{}
	for _, id := range sortedKeys(s.engine.root) {
		d := s.engine.root[id]
		if s.denied(id) || !strings.Contains(id, q.query.Get("id")) || !strings.Contains(d.cmd, q.query.Get("cmd")) ||
			!selector.matches(d.labels) {
			continue
		}
		apps = append(apps, s.engine.appJSON(d, with))
	}
	return answer(http.StatusOK, object{{"apps", apps}})
}

// groupedApps is GET /v2/apps/{group}/*: the apps of a group and below.
func (s *Sim) groupedApps(q *request) *response {
	prefix := strings.TrimSuffix(strings.TrimPrefix(q.path, "/v2/apps"), "*")
	apps := []any{}
	for _, id := range sortedKeys(s.engine.root) {
		if strings.HasPrefix(id, prefix) && !s.denied(id) {
			apps = append(apps, s.engine.appJSON(s.engine.root[id], readEmbeds(q.query["embed"])))
		}
	}
	return answer(http.StatusOK, object{{"*", apps}})
}

// getApp embeds nearly everything, whatever is asked for.
func (s *Sim) getApp(q *request, id string) *response {
	d := s.engine.root[id]
	if d == nil {
		return noSuchApp(id)
	}
	with := readEmbeds(q.query["embed"])
	with.tasks, with.lastTaskFailure = true, true
	return answer(http.StatusOK, object{{"app", s.engine.appJSON(d, with)}})
}

// readApp reads one app out of a body.
func (s *Sim) readApp(v any) (map[string]any, *response) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, s.wrongTypes([]violation{{"/", []string{"error.expected.jsobject"}}})
	}
	known, bad := checkTypes(m)
	if len(bad) > 0 {
		return nil, s.wrongTypes(bad)
	}
	return known, nil
}

// define makes the next version of an app from its JSON; before is the
// version that it replaces.
func (s *Sim) define(id string, in map[string]any, before *definition, fresh bool) (*definition, *response) {
	e := s.engine
	if bad := validate(id, in); len(bad) > 0 {
		return nil, invalid(bad)
	}
	d := newDefinition(e.profile, id, in, e.nextServicePort)
	if before != nil && !fresh && d.sameConfig(before) && d.instances == before.instances {
		return before, nil
	}
	d.version = e.nextVersion()
	d.lastScaling, d.lastConfig = d.version, d.version
	if before != nil && !fresh && d.sameConfig(before) {
		d.lastConfig = before.lastConfig
	}
	return d, nil
}

func (s *Sim) createApp(q *request) *response {
	v, bad := readJSON(q)
	if bad != nil {
		return bad
	}
	in, bad := s.readApp(v)
	if bad != nil {
		return bad
	}
	id := asString(in["id"], "")
	if id == "" {
		return invalid([]violation{{"/id", []string{"error.path.missing"}}})
	}
	id = absoluteID(id)
	if s.denied(id) {
		return forbidden()
	}
	if s.engine.root[id] != nil {
		return message(http.StatusConflict, "An app with id [%s] already exists.", id)
	}
	d, bad := s.define(id, in, nil, true)
	if bad != nil {
		return bad
	}
	dep, bad := s.engine.deploy(change{
		apps: map[string]*definition{id: d}, force: q.flag("force", false), on: parentGroup(id),
	})
	if bad != nil {
		return bad
	}
	body := d.json()
	body = append(
		body, member{"tasksStaged", 0}, member{"tasksRunning", 0}, member{"tasksHealthy", 0}, member{"tasksUnhealthy", 0},
		member{"deployments", []any{object{{"id", dep.id}}}},
	)
	s.engine.bus.apiPost(q.client, q.path, d.json())
	r := answer(http.StatusCreated, body)
	r.header = map[string]string{"Marathon-Deployment-Id": dep.id, "Location": id}
	return r
}

// updated is the definition that a PUT or PATCH of one app comes to.
func (s *Sim) updated(q *request, id string, in map[string]any) (*definition, *response) {
	before := s.engine.root[id]
	if before == nil {
		if q.method == http.MethodPatch {
			return nil, noSuchApp(id)
		}
		// A PUT of what does not exist is a creation, with all that an app must
		// have.
		return s.define(id, in, nil, true)
	}
	if version := asString(in["version"], ""); version != "" && len(in) <= 2 {
		for _, d := range s.engine.versions[id] {
			if stamp(d.version) == version {
				return s.define(id, d.input(), before, false)
			}
		}
		return nil, message(http.StatusNotFound, "App '%s' does not exist in version %s", id, version)
	}
	if q.method == http.MethodPatch || q.flag("partialUpdate", true) {
		in = merge(before.input(), in)
	}
	return s.define(id, in, before, false)
}

func (s *Sim) updateApp(q *request, id string) *response {
	v, bad := readJSON(q)
	if bad != nil {
		return bad
	}
	in, bad := s.readApp(v)
	if bad != nil {
		return bad
	}
	if other := asString(in["id"], id); absoluteID(other) != id {
		return invalid([]violation{{"/id", []string{"The id of the app must be " + id}}})
	}
	before := s.engine.root[id]
	d, bad := s.updated(q, id, in)
	if bad != nil {
		return bad
	}
	c := change{apps: map[string]*definition{}, force: q.flag("force", false), on: parentGroup(id)}
	if d != before {
		c.apps[id] = d
	}
	dep, bad := s.engine.deploy(c)
	if bad != nil {
		return bad
	}
	s.engine.bus.apiPost(q.client, q.path, d.json())
	if before == nil {
		r := deployed(http.StatusCreated, dep)
		r.header["Location"] = id
		return r
	}
	return deployed(http.StatusOK, dep)
}

// updateApps is PUT and PATCH of several apps: one deployment, all or none.
func (s *Sim) updateApps(q *request) *response {
	v, bad := readJSON(q)
	if bad != nil {
		return bad
	}
	list, ok := v.([]any)
	if !ok {
		return s.wrongTypes([]violation{{"/", []string{"error.expected.jsarray"}}})
	}
	c := change{apps: map[string]*definition{}, force: q.flag("force", false), on: "/"}
	var defs []*definition
	for _, e := range list {
		in, bad := s.readApp(e)
		if bad != nil {
			return bad
		}
		id := absoluteID(asString(in["id"], ""))
		if s.denied(id) {
			return forbidden()
		}
		d, bad := s.updated(q, id, in)
		if bad != nil {
			return bad
		}
		defs = append(defs, d)
		if d != s.engine.root[id] {
			c.apps[id] = d
		}
	}
	dep, bad := s.engine.deploy(c)
	if bad != nil {
		return bad
	}
	for _, d := range defs {
		s.engine.bus.apiPost(q.client, q.path, d.json())
	}
	return deployed(http.StatusOK, dep)
}

// deleteApp is the one call that forces unless it is told not to.
func (s *Sim) deleteApp(q *request, id string) *response {
	if s.engine.root[id] == nil {
		return noSuchApp(id)
	}
	dep, bad := s.engine.deploy(change{
		apps: map[string]*definition{id: nil}, force: q.flag("force", true), on: parentGroup(id),
	})
	if bad != nil {
		return bad
	}
	return deployed(http.StatusOK, dep)
}

// restartApp is a new version of the same: it counts as a change of
// configuration.
func (s *Sim) restartApp(q *request, id string) *response {
	before := s.engine.root[id]
	switch {
	case s.denied(id):
		return forbidden()
	case before == nil:
		return noSuchApp(id)
	}
	d := *before
	d.version = s.engine.nextVersion()
	d.lastConfig = d.version
	dep, bad := s.engine.deploy(change{
		apps: map[string]*definition{id: &d}, force: q.flag("force", false), on: parentGroup(id),
	})
	if bad != nil {
		return bad
	}
	return deployed(http.StatusOK, dep)
}

func (s *Sim) appVersions(id string) *response {
	if s.engine.root[id] == nil {
		return noSuchApp(id)
	}
	out := []any{}
	for _, v := range slices.Backward(s.engine.versions[id]) {
		out = append(out, stamp(v.version))
	}
	return answer(http.StatusOK, object{{"versions", out}})
}

func (s *Sim) appVersion(id, version string) *response {
	for _, d := range s.engine.versions[id] {
		if stamp(d.version) == version {
			return answer(http.StatusOK, d.json())
		}
	}
	return noSuchApp(id)
}
