package marathonsim

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A request is a call of the API, as the engine sees it.
type request struct {
	method string
	path   string // below the base path
	query  url.Values
	body   []byte
	client string
	json   bool // Accept asks for JSON
	plain  bool // Accept asks for text
}

func newRequest(r *http.Request, path string, body []byte) *request {
	accept := r.Header.Get("Accept")
	return &request{
		method: r.Method, path: path, query: r.URL.Query(), body: body, client: remoteHost(r),
		json: strings.Contains(accept, "application/json"), plain: strings.HasPrefix(accept, "text/plain"),
	}
}

// flag reads a boolean parameter.
func (q *request) flag(name string, def bool) bool {
	switch q.query.Get(name) {
	case "true":
		return true
	case "false":
		return false
	}
	return def
}

// A response is what a call comes to.
type response struct {
	status int
	body   any    // JSON, or
	text   string // text
	header map[string]string
	wait   chan struct{} // the answer goes out when it is closed
}

func (r *response) bytes() []byte {
	if r.body != nil {
		return marshal(r.body)
	}
	return []byte(r.text)
}

func (r *response) contentType() string {
	if r.body != nil {
		return "application/json"
	}
	return "text/plain;charset=utf-8"
}

func answer(status int, body any) *response { return &response{status: status, body: body} }

func message(status int, format string, args ...any) *response {
	return answer(status, object{{"message", fmt.Sprintf(format, args...)}})
}

func noSuchApp(id string) *response {
	return message(http.StatusNotFound, "App '%s' does not exist", id)
}

func lockedResponse(by []*deployment) *response {
	ids := []any{}
	for _, d := range by {
		ids = append(ids, object{{"id", d.id}})
	}
	return answer(http.StatusConflict, object{
		{"message", "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'."},
		{"deployments", ids},
	})
}

func tooManyDeployments(n int) *response {
	return message(http.StatusForbidden, "Max number (%d) of running deployments is achieved. Wait for existing deployments to complete or cancel one using force=true parameter. You can increase max deployment number by using --max_running_deployments parameter", n)
}

func forbidden() *response {
	return answer(http.StatusForbidden, object{{"message", "Not Authorized to perform this action!"}})
}

// deployed is the answer to what made a deployment.
func deployed(status int, d *deployment) *response {
	r := answer(status, object{{"version", stamp(d.version)}, {"deploymentId", d.id}})
	r.header = map[string]string{"Marathon-Deployment-Id": d.id}
	return r
}

// authenticate looks at the credentials; without good ones it answers itself.
func (s *Sim) authenticate(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	auth := s.auth
	s.mu.Unlock()
	switch {
	case auth.User != "":
		if user, password, ok := r.BasicAuth(); ok && user == auth.User && password == auth.Password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="Mesosphere"`)
		sendError(w, http.StatusUnauthorized, "Unauthorized")
		return false
	case auth.Token != "":
		if r.Header.Get("Authorization") == "token="+auth.Token {
			return true
		}
		w.Header().Set("WWW-Authenticate", "acsjwt")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"message":"Invalid username or password."}`))
		return false
	}
	return true
}

// denied tells whether the caller has no right to the app.
func (s *Sim) denied(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.auth.Denied, func(d string) bool {
		return id == d || strings.HasSuffix(d, "/") && strings.HasPrefix(id, d)
	})
}

// route finds what answers a request. It runs in the engine's goroutine.
func (s *Sim) route(q *request) *response {
	switch path := strings.TrimSuffix(q.path, "/"); {
	case path == "/ping" && q.method == http.MethodGet:
		if q.json {
			return answer(http.StatusOK, "pong")
		}
		return &response{status: http.StatusOK, text: "pong"}
	case path == "/v2/info" && q.method == http.MethodGet:
		return answer(http.StatusOK, s.infoJSON())
	case path == "/v2/leader":
		return s.leaderResource(q)
	case path == "/v2/apps":
		return s.appsResource(q)
	case strings.HasPrefix(path, "/v2/apps/"):
		return s.appResource(q, strings.TrimPrefix(path, "/v2/apps/"))
	case path == "/v2/tasks" && q.method == http.MethodGet:
		return s.listTasks(q)
	case path == "/v2/tasks/delete" && q.method == http.MethodPost:
		return s.deleteTasks(q)
	case path == "/v2/deployments" && q.method == http.MethodGet:
		return s.listDeployments()
	case strings.HasPrefix(path, "/v2/deployments/") && q.method == http.MethodDelete:
		return s.deleteDeployment(q, strings.TrimPrefix(path, "/v2/deployments/"))
	case path == "/v2/queue" && q.method == http.MethodGet:
		return s.listQueue()
	case strings.HasPrefix(path, "/v2/queue/") && strings.HasSuffix(path, "/delay") && q.method == http.MethodDelete:
		return s.resetDelay(absoluteID(strings.TrimSuffix(strings.TrimPrefix(path, "/v2/queue"), "/delay")))
	}
	if s.engine.profile.unknownURI == http.StatusNotFound {
		return message(http.StatusNotFound, "URI not found: %s", strings.TrimPrefix(q.path, "/"))
	}
	return message(s.engine.profile.unknownURI, "URI not found")
}

// appResource is everything below one app, whose id has slashes itself.
func (s *Sim) appResource(q *request, rest string) *response {
	if q.method == http.MethodGet && (rest == "*" || strings.HasSuffix(rest, "/*")) {
		return s.groupedApps(q)
	}
	if app, task, ok := cutLast(rest, "/tasks/"); ok && q.method == http.MethodDelete {
		return s.deleteTask(q, absoluteID(app), task)
	}
	if app, ok := strings.CutSuffix(rest, "/tasks"); ok {
		return s.appTasksResource(q, absoluteID(app))
	}
	if app, ok := strings.CutSuffix(rest, "/restart"); ok && q.method == http.MethodPost {
		return s.restartApp(q, absoluteID(app))
	}
	if app, ok := strings.CutSuffix(rest, "/versions"); ok && q.method == http.MethodGet {
		return s.appVersions(absoluteID(app))
	}
	if app, version, ok := cutLast(rest, "/versions/"); ok && q.method == http.MethodGet {
		return s.appVersion(absoluteID(app), version)
	}
	id := absoluteID(rest)
	if s.denied(id) {
		return forbidden()
	}
	switch q.method {
	case http.MethodGet:
		return s.getApp(q, id)
	case http.MethodPut, http.MethodPatch:
		return s.updateApp(q, id)
	case http.MethodDelete:
		return s.deleteApp(q, id)
	}
	return &response{status: http.StatusMethodNotAllowed}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// readJSON reads a body, and answers what Marathon answers to one that it
// cannot read.
func readJSON(q *request) (any, *response) {
	if len(strings.TrimSpace(string(q.body))) == 0 {
		return nil, answer(http.StatusBadRequest, object{
			{"message", "Please specify data in JSON format"},
			{"details", "No content to map due to end-of-input"},
		})
	}
	v, err := parseJSON(q.body)
	if err != nil {
		return nil, answer(http.StatusBadRequest, object{{"message", "Invalid JSON"}, {"details", err.Error()}})
	}
	return v, nil
}

func (s *Sim) wrongTypes(vs []violation) *response {
	return answer(s.engine.profile.typeErrors, object{{"message", "Invalid JSON"}, {"details", details(vs)}})
}

func invalid(vs []violation) *response {
	return answer(http.StatusUnprocessableEntity, object{{"message", "Object is not valid"}, {"details", details(vs)}})
}
