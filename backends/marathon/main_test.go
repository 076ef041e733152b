package marathon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that should happen soon.
const patience = 10 * time.Second

// masters stands in for a cluster with one app, /web. It answers with the JSON
// that a Marathon writes, and does what a test tells it to and nothing else:
// no task starts or ends by itself.
type masters struct {
	t     *testing.T
	nodes []*httptest.Server

	mu          sync.Mutex
	rules       []rule
	calls       []call
	subscribers map[chan string]bool
	made        int // versions and deployments

	missing     bool
	instances   int
	version     int
	config      int
	extra       string // more fields of the app, each with a comma in front
	tasks       []string
	failure     string
	deployments []string
	queue       string // the items of the queue
}

// rule answers a request in place of the cluster, or returns false.
type rule func(w http.ResponseWriter, r *http.Request, node int) bool

// call is a request that came in.
type call struct {
	node               int
	method, path, body string // the path with its query
	header             http.Header
}

func (c call) String() string { return strings.TrimSpace(c.method + " " + c.path + " " + c.body) }

func newMasters(t *testing.T, nodes int) *masters {
	t.Helper()
	m := &masters{t: t, subscribers: make(map[chan string]bool)}
	for k := range nodes {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, k) }))
		m.nodes = append(m.nodes, s)
		t.Cleanup(func() {
			s.CloseClientConnections()
			s.Close()
		})
	}
	return m
}

func (m *masters) urls() []string {
	var all []string
	for _, n := range m.nodes {
		all = append(all, n.URL)
	}
	return all
}

// set changes what the cluster says.
func (m *masters) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// rule adds a rule, which goes before the earlier ones.
func (m *masters) rule(r rule) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rules = slices.Insert(m.rules, 0, r)
}

// stamp is a version of the app.
func stamp(n int) string {
	return time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(n) * time.Second).Format("2006-01-02T15:04:05.000Z")
}

// task is a task of /web as the list shows it.
func task1(name, state string, port int, more string) string {
	return fmt.Sprintf(`{"appId":"/web","id":"web.instance-%s._app.1","host":"127.0.0.1","ports":[%d],
		"ipAddresses":[{"ipAddress":"127.0.0.1","protocol":"IPv4"}],"servicePorts":[],"slaveId":"S0","state":%q,
		"stagedAt":"2024-01-02T03:04:06.001Z","startedAt":"2024-01-02T03:04:07.250Z","version":%q,
		"healthCheckResults":[],"localVolumes":[],"role":"*"%s}`, name, port, state, stamp(0), more)
}

func id(name string) string { return "web.instance-" + name + "._app.1" }

func running(name string, port int) string { return task1(name, "TASK_RUNNING", port, "") }

func (m *masters) app() string {
	var deployments []string
	for _, d := range m.deployments {
		deployments = append(deployments, fmt.Sprintf(`{"id":%q}`, d))
	}
	failure := ""
	if m.failure != "" {
		failure = `,"lastTaskFailure":` + m.failure
	}
	return fmt.Sprintf(`{"app":{"id":"/web","cmd":"./serve","instances":%d,"networks":[{"mode":"host"}],
		"portDefinitions":[{"port":10000,"name":"default","protocol":"tcp"}],
		"env":{"PASSWORD":{"secret":"s1"}},"secrets":{"s1":{"source":"/pw"}},
		"version":%q,"versionInfo":{"lastScalingAt":%q,"lastConfigChangeAt":%q},"deployments":[%s],"tasks":[%s]%s%s}}`,
		m.instances, stamp(m.version), stamp(m.version), stamp(m.config), strings.Join(deployments, ","), strings.Join(m.tasks, ","), failure, m.extra)
}

func (m *masters) serve(w http.ResponseWriter, r *http.Request, node int) {
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	m.calls = append(m.calls, call{node, r.Method, r.URL.RequestURI(), string(body), r.Header.Clone()})
	rules := slices.Clone(m.rules)
	m.mu.Unlock()
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	for _, rule := range rules {
		if rule(w, r, node) {
			return
		}
	}
	if r.URL.Path == "/v2/events" {
		m.stream(w, r)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/v2/queue":
		fmt.Fprintf(w, `{"queue":[%s]}`, m.queue)
	case r.URL.Path == "/v2/deployments":
		var all []string
		for _, d := range m.deployments {
			all = append(all, fmt.Sprintf(`{"id":%q,"version":%q,"affectedApps":["/web"],"affectedPods":[],
				"steps":[{"actions":[{"action":"ScaleApplication","app":"/web"}]}],
				"currentActions":[{"action":"ScaleApplication","app":"/web","readinessCheckResults":[]}],"currentStep":1,"totalSteps":1}`, d, stamp(m.version)))
		}
		fmt.Fprintf(w, "[%s]", strings.Join(all, ","))
	case m.missing && strings.HasPrefix(r.URL.Path, "/v2/apps/web"):
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"App '/web' does not exist"}`)
	case r.Method == http.MethodGet && r.URL.Path == "/v2/apps/web":
		fmt.Fprint(w, m.app())
	case r.Method == http.MethodPatch && r.URL.Path == "/v2/apps/web":
		var in struct{ Instances int }
		_ = json.Unmarshal(body, &in)
		m.instances = in.Instances
		m.accept(w)
	case r.Method == http.MethodPost && r.URL.Path == "/v2/apps/web/restart":
		m.accept(w)
	case r.Method == http.MethodPost && r.URL.Path == "/v2/tasks/delete":
		var in struct{ IDs []string }
		_ = json.Unmarshal(body, &in)
		if r.URL.Query().Get("scale") != "true" {
			fmt.Fprint(w, `{"tasks":[]}`)
			return
		}
		m.instances = max(0, m.instances-len(in.IDs))
		m.accept(w)
	case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/v2/deployments/"):
		m.deployments = slices.DeleteFunc(m.deployments, func(d string) bool { return strings.HasSuffix(r.URL.Path, d) })
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodDelete && r.URL.Path == "/v2/queue/web/delay":
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"message":"URI not found"}`)
	}
}

// accept answers as a deployment does. The deployment is over at once.
func (m *masters) accept(w http.ResponseWriter) {
	m.made++
	m.version++
	w.Header().Set("Marathon-Deployment-Id", fmt.Sprintf("d%d", m.made))
	fmt.Fprintf(w, `{"version":%q,"deploymentId":"d%d"}`, stamp(m.version), m.made)
}

// locked is the answer to a change while deployments hold the app.
func locked(w http.ResponseWriter, ids ...string) bool {
	var all []string
	for _, d := range ids {
		all = append(all, fmt.Sprintf(`{"id":%q}`, d))
	}
	w.WriteHeader(http.StatusConflict)
	fmt.Fprintf(w, `{"message":"App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.","deployments":[%s]}`, strings.Join(all, ","))
	return true
}

// change says whether a request wants to change something.
func change(r *http.Request) bool { return r.Method != http.MethodGet }

func (m *masters) stream(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Accept") != "text/event-stream" {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	events := make(chan string, 100)
	m.mu.Lock()
	m.subscribers[events] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.subscribers, events)
		m.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream;charset=utf-8")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			fmt.Fprint(w, e)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// event sends an event about an app.
func (m *masters) event(app string) {
	m.raw("event: status_update_event\r\ndata: {\"slaveId\":\"S0\",\"taskId\":\"x\",\"taskStatus\":\"TASK_RUNNING\",\"appId\":\"" + app + "\",\"eventType\":\"status_update_event\"}\r\n\r\n")
}

func (m *masters) raw(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.subscribers {
		s <- text
	}
}

// awaitStream waits until so many clients listen.
func (m *masters) awaitStream(n int) {
	m.t.Helper()
	eventually(m.t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.subscribers) == n
	}, "%d streams are open", n)
}

// changes returns the requests that wanted to change something.
func (m *masters) changes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, c := range m.calls {
		if c.method != http.MethodGet {
			all = append(all, c.String())
		}
	}
	return all
}

func (m *masters) count(method, path string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, c := range m.calls {
		if c.method == method && strings.HasPrefix(c.path, path) {
			n++
		}
	}
	return n
}

func wantChanges(t *testing.T, m *masters, want ...string) {
	t.Helper()
	if got := m.changes(); !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// eventually waits for something that should happen soon.
func eventually(t *testing.T, ok func() bool, what string, args ...any) {
	t.Helper()
	harness.Eventually(t, patience, ok, append([]any{what}, args...)...)
}

// bench is a revision with its surroundings.
type bench struct {
	t    *testing.T
	r    *runner
	logs *observer.ObservedLogs

	mu      sync.Mutex
	reports []scaler.Report
	closed  bool
}

func provisioned(t *testing.T, b *Backend) *Backend {
	t.Helper()
	if b.App == "" {
		b.App = "/web"
	}
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if f := b.Check(); f != nil {
		t.Fatal(f)
	}
	return b
}

// open opens a backend for the service web.
func start(t *testing.T, b *Backend) *bench {
	t.Helper()
	provisioned(t, b)
	core, logs := observer.New(zapcore.DebugLevel)
	bn := &bench{t: t, logs: logs}
	s, err := b.Open(scaler.Env{Service: "web", Revision: "r1", Logger: func() *slog.Logger { return slog.New(zapslog.NewHandler(core)) }, Report: func(r scaler.Report) {
		bn.mu.Lock()
		defer bn.mu.Unlock()
		bn.reports = append(bn.reports, r)
	}})
	if err != nil {
		t.Fatal(err)
	}
	bn.r = s.(*runner)
	t.Cleanup(bn.close)
	return bn
}

// at opens a backend for /web at a cluster, and waits for its first report.
func at(t *testing.T, m *masters) *bench {
	t.Helper()
	b := start(t, &Backend{URLs: m.urls()})
	b.await("a first report", func(scaler.Report) bool { return true })
	return b
}

func (b *bench) close() {
	b.mu.Lock()
	closed := b.closed
	b.closed = true
	b.mu.Unlock()
	if closed {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.r.Close(ctx, time.Second); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

func (b *bench) history() []scaler.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.reports)
}

// await waits until a report is as wanted and returns it.
func (b *bench) await(what string, ok func(scaler.Report) bool) scaler.Report {
	b.t.Helper()
	var last scaler.Report
	eventually(b.t, func() bool {
		all := b.history()
		if len(all) == 0 {
			return false
		}
		last = all[len(all)-1]
		return ok(last)
	}, "a report shows %s", what)
	return last
}

func (b *bench) scale(n int, stop ...string) {
	b.t.Helper()
	if err := b.order(n, stop...); err != nil {
		b.t.Fatalf("scale to %d: %v", n, err)
	}
}

func (b *bench) order(n int, stop ...string) error {
	return b.r.Scale(b.t.Context(), scaler.Order{Instances: n, Stop: stop, StopTimeout: time.Second})
}

// scaleInTime gives an order until the backend carries it out.
func (b *bench) scaleInTime(n int, stop ...string) {
	b.t.Helper()
	eventually(b.t, func() bool {
		err := b.order(n, stop...)
		if err != nil && !errors.Is(err, scaler.ErrLater) {
			b.t.Fatal(err)
		}
		return err == nil
	}, "the order for %d is carried out", n)
}

func instance(r scaler.Report, name string) (scaler.Instance, bool) {
	for _, i := range r.Instances {
		if i.ID == id(name) || i.ID == name {
			return i, true
		}
	}
	return scaler.Instance{}, false
}

func phase(name string, p scaler.Phase) func(scaler.Report) bool {
	return func(r scaler.Report) bool {
		i, ok := instance(r, name)
		return ok && i.Phase == p
	}
}

func gone(name string) func(scaler.Report) bool {
	return func(r scaler.Report) bool {
		_, ok := instance(r, name)
		return !ok
	}
}

func wantFailure(t *testing.T, err error, reason scaler.Reason, forGood bool, words ...string) {
	t.Helper()
	f := scaler.AsFailure(err)
	if f == nil || f.Reason != reason || f.ForGood != forGood {
		t.Fatalf("got %#v, want a failure with reason %s, for good %v", f, reason, forGood)
	}
	for _, w := range words {
		if !strings.Contains(f.Error(), w) {
			t.Errorf("%q does not say %q", f.Error(), w)
		}
	}
}

// hang is a rule that never answers.
func hang(_ http.ResponseWriter, r *http.Request, _ int) bool {
	<-r.Context().Done()
	return true
}

// quiet is a logger for what a test does not look at.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
