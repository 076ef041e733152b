package caddymodule

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
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
	for name, a := range statusAssets {
		if !strings.Contains(r.body, "?asset="+name+"&amp;v="+a.version) {
			t.Errorf("the page does not name %s", name)
		}
		for version, cached := range map[string]bool{a.version: true, "old": false} {
			got := c.get("/status?asset=" + name + "&v=" + version)
			if got.status != 200 || got.body != string(a.body) || strings.Contains(got.header.Get("Cache-Control"), "immutable") != cached {
				t.Errorf("%s %s: %d %v", name, version, got.status, got.header)
			}
		}
		if strings.Contains(strings.ReplaceAll(string(a.body), "http://www.w3.org/2000/svg", ""), "://") {
			t.Errorf("%s names somebody else", name)
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
		if err := json.Unmarshal([]byte(r.body), &all); err != nil || r.header.Get("Content-Type") != typeJSON {
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
	if r := c.get("/status?format=json&service=nobody"); r.status != 404 || object(t, r)["error"] == "" {
		t.Errorf("%+v", r)
	}
}

func TestStatusChangesNothingUnlessControlIsOn(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus(""))
	r := c.do("POST", "/status?do=wake&service="+f.name, "{}", "Content-Type", typeJSON)
	if r.status != 403 || !strings.Contains(object(t, r)["error"].(string), "control on") {
		t.Errorf("%+v", r)
	}
	if st := serving(t, f.name).loop.Status(); st.State != scaler.Asleep {
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
		{403, []string{"Content-Type", typeJSON, "Origin", "http://elsewhere.example"}},
		{403, []string{"Content-Type", typeJSON, "Sec-Fetch-Site", "cross-site"}},
		{403, []string{"Content-Type", typeJSON, "Sec-Fetch-Site", "same-site"}},
		{403, []string{"Content-Type", typeJSON, "Origin", "null"}},
	} {
		if r := post("suspend", "{}", x.header...); r.status != x.status || object(t, r)["error"] == "" {
			t.Errorf("%v: %+v", x.header, r)
		}
	}
	if st := serving(t, f.name).loop.Status(); st.State != scaler.Asleep {
		t.Fatalf("something was done: %+v", st)
	}

	own := []string{"Content-Type", typeJSON, "Sec-Fetch-Site", "same-origin", "Origin", c.front.URL}
	for _, x := range []struct {
		what, body string
		status     int
		state      scaler.State
	}{
		{"wake", "{}", 200, scaler.Awake},
		{"dance", "{}", 400, scaler.Awake},
		{"restart", "{}", 400, scaler.Awake},
		{"suspend", `{"reason":"moving"}`, 200, scaler.Suspended},
		{"wake", "{}", 409, scaler.Suspended},
		{"resume", "{}", 200, scaler.Asleep},
		{"sleep", `{"now":1}`, 400, scaler.Asleep},
	} {
		if r := post(x.what, x.body, own...); r.status != x.status {
			t.Errorf("%s: %+v", x.what, r)
		}
		eventually(t, x.what, func() bool { return serving(t, f.name).loop.Status().State == x.state })
	}
	if r := c.do("POST", "/status?service=nobody&do=wake", "{}", own...); r.status != 404 {
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
			Slots   slotCounts
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

func TestAServiceThatNobodyAsksForHasNoHistory(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, f.withStatus(""))
	next, _ := eventsOf(t, c, "/status?stream")
	next()
	c.get("/status?format=json")
	if serving(t, f.name).chronicle.Load() != nil {
		t.Error("it is kept for a service to which nothing has happened")
	}
	c.get("/")
	if serving(t, f.name).chronicle.Load() == nil {
		t.Error("nothing is kept of what happened")
	}
}

func TestTheHistoryOfABusyServiceIsBounded(t *testing.T) {
	t.Parallel()
	c := new(chronicle)
	begin := time.Date(2026, time.March, 4, 12, 0, 0, 0, time.UTC)
	for k := range 40000 {
		at := begin.Add(time.Duration(k) * time.Second)
		c.target(at, k%7)
		c.coldStarted(at, time.Second)
		c.failed(at, &scaler.Failure{Short: strings.Repeat("ä", messageMax)})
	}
	v, entries := c.copy(), c.count()
	most := int(targetsFor/targetStep) + 2
	if len(v.Targets) > most || cap(c.targets) > 4*most || len(v.ColdStarts) != startsKept || len(v.Failures) != startsKept || entries != 3*40000 {
		t.Errorf("%d targets of %d, %d cold starts, %d failures", len(v.Targets), cap(c.targets), len(v.ColdStarts), len(v.Failures))
	}
	if n := len(v.Failures[0].Message); n > messageMax+10 {
		t.Errorf("a message has %d bytes", n)
	}
	first, last := v.Targets[0], v.Targets[len(v.Targets)-1]
	if last.high != 6 || last.last != 39999%7 || last.at-first.at < uint32(targetsFor/time.Second) {
		t.Errorf("%+v to %+v", first, last)
	}
}

func TestNewsAreTheLatest(t *testing.T) {
	t.Parallel()
	var n news
	for k := range 3 * newsKept {
		n.add(newsItem{Service: fmt.Sprint(k)})
	}
	all := n.after(0)
	if len(all) != newsKept || all[newsKept-1].Service != fmt.Sprint(3*newsKept-1) || all[0].Number != 2*newsKept+1 {
		t.Errorf("%d, from %+v", len(all), all[0])
	}
	if rest := n.after(3*newsKept - 2); len(rest) != 2 {
		t.Errorf("%d are new", len(rest))
	}
}
