package harness

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// Service is what the admin API tells about a service.
type Service struct {
	Name      string `json:"name"`
	Backend   string `json:"backend"`
	State     string `json:"state"`
	Target    int    `json:"target"`
	Min       int    `json:"min"`
	Max       int    `json:"max"`
	Instances struct {
		Starting int `json:"starting"`
		Ready    int `json:"ready"`
		Ejected  int `json:"ejected"`
		Draining int `json:"draining"`
	} `json:"instances"`
	Slots struct {
		Total *int `json:"total"` // nil: unlimited
		InUse int  `json:"in_use"`
	} `json:"slots"`
	Waiting         int            `json:"waiting"`
	SessionKeys     int            `json:"session_keys"`
	Visitors        int            `json:"visitors"`
	OldestWaitMS    float64        `json:"oldest_wait_ms"`
	ColdStarts      int            `json:"cold_starts"`
	LastColdStartMS *float64       `json:"last_cold_start_ms"`
	LastError       any            `json:"last_error"`
	InstanceList    []Instance     `json:"instance_list"`
	Config          map[string]any `json:"config"`
}

// Instance is what the admin API tells about an instance.
type Instance struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	State    string `json:"state"`
	Revision string `json:"revision"`
	Slots    *int   `json:"slots"`
	InUse    int    `json:"in_use"`
	Since    any    `json:"since"`
}

// Decision is one change of a target.
type Decision struct {
	Time   time.Time      `json:"time"`
	From   int            `json:"from"`
	To     int            `json:"to"`
	Reason string         `json:"reason"`
	Inputs map[string]any `json:"inputs"`
}

// Admin sends a request to the admin API. A body is sent as JSON.
func (c *Caddy) Admin(method, path, body string) Response {
	kind := ""
	if body != "" {
		kind = "application/json"
	}
	return c.askAdmin(method, path, kind, body)
}

func (c *Caddy) askAdmin(method, path, kind, body string) Response {
	req, err := http.NewRequest(method, "http://"+c.AdminAddr+path, strings.NewReader(body))
	if err != nil {
		return Response{Err: err, Header: make(http.Header)}
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	// A reload replaces the admin server. The client asks again by itself
	// when an idle connection was closed under a GET, but not under a POST.
	req.Close = method != http.MethodGet
	p := new(Pending)
	p.fill(c.admin.Do(req))
	return p.res
}

// Post makes a call that must succeed, e.g. Post("web/suspend", `{}`).
func (c *Caddy) Post(call, body string) Response {
	c.t.Helper()
	res := c.Admin(http.MethodPost, "/usher/services/"+call, body)
	if res.Err != nil || res.Status/100 != 2 {
		c.t.Fatalf("POST %s: %d %v %s", call, res.Status, res.Err, res.Body)
	}
	return res
}

// Services lists the services.
func (c *Caddy) Services() []Service {
	c.t.Helper()
	var services []Service
	c.adminJSON("/usher/services", &services)
	return services
}

// Service tells about one service.
func (c *Caddy) Service(name string) Service {
	c.t.Helper()
	var service Service
	c.adminJSON("/usher/services/"+name, &service)
	return service
}

// Decisions returns the latest decisions about a service.
func (c *Caddy) Decisions(name string) []Decision {
	c.t.Helper()
	var decisions []Decision
	c.adminJSON("/usher/services/"+name+"/decisions", &decisions)
	return decisions
}

func (c *Caddy) adminJSON(path string, into any) {
	c.t.Helper()
	res := c.Admin(http.MethodGet, path, "")
	if res.Err != nil || res.Status != http.StatusOK {
		c.t.Fatalf("GET %s: %d %v %s", path, res.Status, res.Err, res.Body)
	}
	if err := json.Unmarshal([]byte(res.Body), into); err != nil {
		c.t.Fatalf("GET %s: %v: %s", path, err, res.Body)
	}
}

// AwaitState waits until the service is in the state.
func (c *Caddy) AwaitState(name, state string, timeout time.Duration) {
	c.t.Helper()
	Eventually(c.t, timeout, func() bool { return c.Service(name).State == state }, "%s is %s", name, state)
}

// AwaitWaiting waits until so many requests stand in the queue of the service.
func (c *Caddy) AwaitWaiting(name string, n int) {
	c.t.Helper()
	Eventually(c.t, Slow(5*time.Second), func() bool { return c.Service(name).Waiting == n }, "%d requests wait", n)
}

// AwaitReady waits until so many instances are ready.
func (c *Caddy) AwaitReady(name string, n int, timeout time.Duration) {
	c.t.Helper()
	Eventually(c.t, timeout, func() bool { return c.Service(name).Instances.Ready == n }, "%d instances are ready", n)
}

// AwaitProcesses waits until so many processes of this test run.
func (c *Caddy) AwaitProcesses(n int, timeout time.Duration) {
	c.t.Helper()
	Eventually(c.t, timeout, func() bool { return c.Count() == n }, "%d processes run", n)
}

// Metrics scrapes the admin endpoint and returns the lines whose name begins
// with the prefix, as a map from name and labels to the value.
func (c *Caddy) Metrics(prefix string) map[string]string {
	c.t.Helper()
	res := c.Admin(http.MethodGet, "/metrics", "")
	if res.Err != nil || res.Status != http.StatusOK {
		c.t.Fatalf("GET /metrics: %d %v", res.Status, res.Err)
	}
	series := make(map[string]string)
	for line := range strings.SplitSeq(res.Body, "\n") {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			series[line[:i]] = line[i+1:]
		}
	}
	return series
}

// Events opens the event stream of the admin API.
func (c *Caddy) Events() *EventStream {
	c.t.Helper()
	return c.openStream("http://"+c.AdminAddr+"/usher/events", nil)
}
