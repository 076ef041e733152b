package caddymodule

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

// withStatus is a site with a live view and a service.
func (f *fleet) withStatus(view string, options ...string) string {
	return site("handle /status* {\nusher_status {\n" + view + "\n}\n}\nhandle {\n" + f.usher(options...) + "}\n")
}

func TestStatusIsAPageThatNeedsNobodyElse(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus(`title "<Halls>"`))
	r := c.get("/status?x=y", "Accept", "text/html,application/json;q=0.9")
	if r.status != 200 || !strings.Contains(r.body, "&lt;Halls&gt;") || strings.Contains(r.body, "data-control>") {
		t.Errorf("%+v", r)
	}
	policy := r.header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy has no %s: %s", want, policy)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(r.body, "://") || strings.Contains(r.body, "style=") {
		t.Errorf("%s\n%s", policy, r.body)
	}
	for _, name := range []string{"view.css", "view.js", "icon.svg"} {
		body, err := os.ReadFile("liveview/page/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(r.body, "?asset="+name+"&amp;v=")
		current, _, _ := strings.Cut(rest, `"`)
		if !ok || current == "" {
			t.Fatalf("the page does not name %s", name)
		}
		for version, cached := range map[string]bool{current: true, "old": false} {
			got := c.get("/status?asset=" + name + "&v=" + version)
			if got.status != 200 || got.body != string(body) || strings.Contains(got.header.Get("Cache-Control"), "immutable") != cached {
				t.Errorf("%s %s: %d %v", name, version, got.status, got.header)
			}
		}
		if strings.Contains(strings.ReplaceAll(string(body), "http://www.w3.org/2000/svg", ""), "://") {
			t.Errorf("%s names another host", name)
		}
	}
	if r := c.get("/status?asset=../status.go"); r.status != 404 {
		t.Errorf("%+v", r)
	}
	if r := c.do("PUT", "/status", ""); r.status != 405 {
		t.Errorf("%+v", r)
	}
}

func TestStatusIsReadAsJSON(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus("", "concurrency 3"))
	c.get("/")
	for _, r := range []reply{c.get("/status", "Accept", "application/json"), c.get("/status/?format=json")} {
		var all struct {
			Services []map[string]any
			News     []map[string]any
		}
		if err := json.Unmarshal([]byte(r.body), &all); err != nil || r.header.Get("Content-Type") != answer.TypeJSON {
			t.Fatalf("%v: %+v", err, r)
		}
		found := false
		for _, s := range all.Services {
			found = found || s["name"] == f.name && s["state"] == "awake" && len(s["instance_list"].([]any)) == 1 && len(s["targets"].([]any)) == 1
		}
		if !found || len(all.News) == 0 {
			t.Errorf("%s", r.body)
		}
	}
	o := object(t, c.get("/status?format=json&service="+f.name))
	if d := o["decisions"].([]any); len(d) != 1 || !strings.Contains(d[0].(map[string]any)["words"].(string), "an instance takes 3 requests") {
		t.Errorf("%v", o["decisions"])
	}
	if len(o["cold_start_list"].([]any)) != 1 || len(o["failures"].([]any)) != 0 || o["config"] != nil {
		t.Errorf("%v", o)
	}
	if r := c.get("/status?format=json&service=missing"); r.status != 404 || object(t, r)["error"] == "" {
		t.Errorf("%+v", r)
	}
}

func TestStatusChangesNothingUnlessControlIsOn(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus(""))
	r := c.do("POST", "/status?do=wake&service="+f.name, "{}", "Content-Type", answer.TypeJSON)
	if r.status != 403 || !strings.Contains(object(t, r)["error"].(string), "control on") {
		t.Errorf("%+v", r)
	}
	if st := serving(t, f.name).Loop.Status(); st.State != control.Asleep {
		t.Errorf("%+v", st)
	}
}

func TestStatusOperatesForItsOwnPageOnly(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus("control on"))
	post := func(what, body string, header ...string) reply {
		return c.do("POST", "/status?service="+f.name+"&do="+what, body, header...)
	}
	for _, x := range []struct {
		status int
		header []string
	}{
		{415, nil},
		{415, []string{"Content-Type", "text/plain"}},
		{403, []string{"Content-Type", answer.TypeJSON, "Origin", "http://elsewhere.example"}},
		{403, []string{"Content-Type", answer.TypeJSON, "Sec-Fetch-Site", "cross-site"}},
		{403, []string{"Content-Type", answer.TypeJSON, "Sec-Fetch-Site", "same-site"}},
		{403, []string{"Content-Type", answer.TypeJSON, "Origin", "null"}},
	} {
		if r := post("suspend", "{}", x.header...); r.status != x.status || object(t, r)["error"] == "" {
			t.Errorf("%v: %+v", x.header, r)
		}
	}
	if st := serving(t, f.name).Loop.Status(); st.State != control.Asleep {
		t.Fatalf("something was done: %+v", st)
	}

	own := []string{"Content-Type", answer.TypeJSON, "Sec-Fetch-Site", "same-origin", "Origin", c.front.URL}
	for _, x := range []struct {
		what, body string
		status     int
		state      control.State
	}{
		{"wake", "{}", 200, control.Awake},
		{"dance", "{}", 400, control.Awake},
		{"restart", "{}", 400, control.Awake},
		{"suspend", `{"reason":"moving"}`, 200, control.Suspended},
		{"wake", "{}", 409, control.Suspended},
		{"resume", "{}", 200, control.Asleep},
		{"sleep", `{"now":1}`, 400, control.Asleep},
	} {
		if r := post(x.what, x.body, own...); r.status != x.status {
			t.Errorf("%s: %+v", x.what, r)
		}
		eventually(t, x.what, func() bool { return serving(t, f.name).Loop.Status().State == x.state })
	}
	if r := c.do("POST", "/status?service=missing&do=wake", "{}", own...); r.status != 404 {
		t.Errorf("%+v", r)
	}
	if n := len(logsOf(logName(t)).entries("asked for in the live view")); n < 4 {
		t.Errorf("%d operations are in the log", n)
	}
}

// eventsOf opens a stream of the live view and returns what reads its events.
func eventsOf(t *testing.T, c *config, path string) (next func() (name, data string), status int) {
	t.Helper()
	resp, err := http.Get(c.front.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	return func() (name, data string) {
		for lines.Scan() {
			switch line := lines.Text(); {
			case line == "" && name != "":
				return name, data
			case strings.HasPrefix(line, "event: "):
				name = line[7:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			}
		}
		return "", ""
	}, resp.StatusCode
}

// frameOf decodes the part of a frame that is about the service.
func frameOf(t *testing.T, name, data string) (state string, inUse int, targets [][3]int, ok bool) {
	t.Helper()
	var fr struct {
		Services []struct {
			Name    string
			State   string
			Slots   hub.SlotCounts
			Targets [][3]int
		}
	}
	if err := json.Unmarshal([]byte(data), &fr); err != nil {
		t.Fatal(err, data)
	}
	for _, s := range fr.Services {
		if s.Name == name {
			return s.State, s.Slots.InUse, s.Targets, true
		}
	}
	return "", 0, nil, false
}

func TestStatusStreamTellsThePresentThenWhatChanges(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	inside := make(chan struct{})
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-inside })
	}
	c := start(t, f.withStatus("", "idle_timeout 200ms"))
	next, _ := eventsOf(t, c, "/status?stream")
	name, data := next()
	if state, _, _, ok := frameOf(t, f.name, data); name != "present" || !ok || state != "asleep" {
		t.Fatalf("%s %s", name, data)
	}
	done := c.begin("GET", "/", "")
	until := func(what string, cond func(state string, inUse int, targets [][3]int) bool) {
		t.Helper()
		for {
			name, data := next()
			if name != "frame" {
				t.Fatalf("%s instead of %s", name, what)
			}
			if state, inUse, targets, ok := frameOf(t, f.name, data); ok && cond(state, inUse, targets) {
				return
			}
		}
	}
	until("a request inside", func(state string, inUse int, targets [][3]int) bool {
		return state == "awake" && inUse == 1 && len(targets) > 0
	})
	close(inside)
	done()
	until("sleep", func(state string, inUse int, targets [][3]int) bool {
		return state == "asleep" && inUse == 0 && targets[len(targets)-1][2] == 0
	})
	// Another configuration goes on with the service.
	start(t, f.withStatus(""))
	c.cancel()
	for {
		name, _ := next()
		if name == "bye" {
			return
		}
		if name == "" {
			t.Fatal("the stream ends without a word")
		}
	}
}

func TestStatusStreamsAreBounded(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus("max_streams 1"))
	next, _ := eventsOf(t, c, "/status?stream")
	next()
	if r := c.get("/status?stream"); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("%+v", r)
	}
	if r := c.get("/status"); r.status != 200 {
		t.Errorf("the page is refused, too: %+v", r)
	}
}
