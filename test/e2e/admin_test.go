package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

var (
	serviceKeys = []string{
		"backend", "cold_starts", "instances", "last_cold_start_ms", "last_error", "max", "min",
		"name", "oldest_wait_ms", "slots", "state", "target", "waiting",
	}
	instanceKeys = []string{"address", "id", "in_use", "revision", "since", "slots", "state"}
)

// wantKeys checks that an object has these keys. It may grow others.
func wantKeys(t *testing.T, what string, object map[string]any, keys []string) {
	t.Helper()
	for _, key := range keys {
		if _, ok := object[key]; !ok {
			t.Errorf("%s has no %q: %v", what, key, slices.Sorted(maps.Keys(object)))
		}
	}
}

func decode[T any](t *testing.T, r harness.Response) T {
	t.Helper()
	var v T
	if r.Err != nil || r.Status != http.StatusOK {
		t.Fatalf("status %d, error %v: %s", r.Status, r.Err, r.Body)
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		t.Errorf("Content-Type %q", r.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal([]byte(r.Body), &v); err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return v
}

func TestAdminListsServicesByName(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{
		Usher: "service zebra {\n" + c.Backend() + "\n}\nservice ant {\n" + c.Backend() + "\ninstances 1 2\nconcurrency unlimited\n}",
		Site:  "handle /z* {\n\tusher zebra\n}\nhandle {\n" + webBlock(c, nil, "concurrency 7") + "\n}",
	})
	wantOK(t, c.Get("/"))
	c.AwaitReady("ant", 1, soon)
	list := decode[[]map[string]any](t, c.Admin("GET", "/usher/services", ""))
	var names []string
	for _, s := range list {
		wantKeys(t, "a service", s, serviceKeys)
		names = append(names, s["name"].(string))
	}
	if !slices.Equal(names, []string{"ant", "web", "zebra"}) {
		t.Errorf("names %v", names)
	}
	for i, s := range c.Services() {
		want := []struct {
			state           string
			target, min, mx int
		}{{"awake", 1, 1, 2}, {"awake", 1, 0, 1}, {"asleep", 0, 0, 1}}[i]
		if s.Backend != "process" || s.State != want.state || s.Target != want.target || s.Min != want.min || s.Max != want.mx {
			t.Errorf("%s: %+v", s.Name, s)
		}
	}
	if total := c.Service("web").Slots.Total; total == nil || *total != 7 {
		t.Errorf("slots of web: %v", total)
	}
	if total := c.Service("ant").Slots.Total; total != nil {
		t.Errorf("slots of ant: %d, want null for unlimited", *total)
	}
}

func TestAdminTellsAboutOneServiceWithoutItsSecrets(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("env PASSWORD hunter2"))})
	wantOK(t, c.Get("/"))
	r := c.Admin("GET", "/usher/services/web", "")
	s := decode[map[string]any](t, r)
	wantKeys(t, "the service", s, append(serviceKeys, "instance_list", "config"))
	list, _ := s["instance_list"].([]any)
	if len(list) != 1 {
		t.Fatalf("instance_list: %v", s["instance_list"])
	}
	wantKeys(t, "an instance", list[0].(map[string]any), instanceKeys)
	if strings.Contains(r.Body, "hunter2") || !strings.Contains(r.Body, "***") {
		t.Errorf("the value of a variable is shown, or is not hidden as ***: %s", r.Body)
	}
	if inst := c.Service("web").InstanceList[0]; inst.State != "ready" || inst.Address == "" || inst.Revision == "" {
		t.Errorf("instance %+v", inst)
	}
	if strings.Contains(c.RawLog(), "hunter2") {
		t.Error("the log has the value of a variable")
	}
}

func TestAdminAnswersMistakesAsJSON(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	for _, f := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/usher/services/missing", "", 404},
		{"GET", "/usher/services/missing/decisions", "", 404},
		{"POST", "/usher/services/missing/wake", "", 404},
		{"POST", "/usher/services/missing/suspend", `{"reason":"x"}`, 404},
		{"DELETE", "/usher/services/missing/instances/x", "", 404},
		{"DELETE", "/usher/services/web/instances/x", "", 404},
		{"GET", "/usher/nothing", "", 404},
		{"GET", "/usher/services/web/nothing", "", 404},
		{"POST", "/usher/services", "", 405},
		{"DELETE", "/usher/services/web", "", 405},
		{"GET", "/usher/services/web/wake", "", 405},
		{"GET", "/usher/services/web/suspend", "", 405},
		{"PUT", "/usher/services/web/restart", "", 405},
		{"POST", "/usher/services/web/decisions", "", 405},
		{"POST", "/usher/events", "", 405},
		{"POST", "/usher/services/web/suspend", `{"reason":`, 400},
		{"POST", "/usher/services/web/suspend", `{"reason":5}`, 400},
		{"POST", "/usher/services/web/suspend", `[]`, 400},
	} {
		r := c.Admin(f.method, f.path, f.body)
		var e struct {
			Error string `json:"error"`
		}
		if r.Status != f.status || json.Unmarshal([]byte(r.Body), &e) != nil || e.Error == "" {
			t.Errorf("%s %s %s: status %d, want %d, and an error in JSON: %s", f.method, f.path, f.body, r.Status, f.status, r.Body)
		}
	}
	if s := c.Service("web"); s.State != "asleep" {
		t.Errorf("after all those mistakes web is %s", s.State)
	}
}

func TestAdminWakeStartsOneInstanceAsARequestWould(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "idle_timeout 500ms", "scale queue"))
	c.Post("web/wake", "")
	c.AwaitState("web", "awake", soon)
	c.AwaitProcesses(1, soon)
	c.AwaitProcesses(0, soon) // and it goes to sleep as after a request
	if s := c.Service("web"); s.ColdStarts != 1 {
		t.Errorf("%d cold starts", s.ColdStarts)
	}
}

func TestAdminSleepStopsAllUntilTheNextRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 3"))
	c.AwaitReady("web", 2, soon)
	c.Post("web/sleep", "")
	c.AwaitProcesses(0, soon)
	harness.Throughout(t, 300*time.Millisecond, func() bool { return c.Count() == 0 }, "the minimum is not kept")
	c.AwaitState("web", "asleep", soon)
	wantOK(t, c.Get("/"))
	c.AwaitReady("web", 2, soon) // and the minimum holds again
}

func TestAdminSleepWithWaitersLetsThemWakeIt(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1"))
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	waits := c.Send(harness.Request{})
	c.AwaitWaiting("web", 1)
	c.Post("web/sleep", "")
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	wantOK(t, waits.Wait(t, soon))
}

func TestAdminSuspendAnswersWhoWaitsAndLetsThoseInsideFinish(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1"))
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	burst := c.Burst("web", 5, "/")
	c.Post("web/suspend", `{"reason":"moving house"}`)
	for _, r := range burst.Wait(t, atOnce) {
		wantRefusal(t, r, "suspended")
	}
	if s := c.Service("web"); s.State != "suspended" || s.Waiting != 0 {
		t.Errorf("state %s, %d waiting", s.State, s.Waiting)
	}
	wantRefusal(t, c.Get("/"), "suspended")
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	c.AwaitProcesses(0, soon)
	c.Post("web/resume", "")
	wantOK(t, c.Get("/"))
}

func TestAdminRestartIsRollingAndLosesNothing(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 3", "concurrency 4"))
	c.AwaitReady("web", 2, soon)
	old := make(map[string]bool)
	for _, i := range c.Service("web").InstanceList {
		old[i.ID] = true
	}
	load := c.Load(4, "/sleep?d=2ms")
	c.Post("web/restart", "")
	harness.Eventually(t, soon, func() bool {
		s := c.Service("web")
		for _, i := range s.InstanceList {
			if old[i.ID] {
				return false
			}
		}
		return s.Instances.Ready >= 2
	}, "two new instances have taken over")
	wantAllOK(t, load.Stop())
}

func TestAdminDeleteReplacesOneInstance(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 2"))
	c.AwaitReady("web", 2, soon)
	list := c.Service("web").InstanceList
	if r := c.Admin("DELETE", "/usher/services/web/instances/"+list[0].ID, ""); r.Status/100 != 2 {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	harness.Eventually(t, soon, func() bool {
		s := c.Service("web")
		kept, gone := false, true
		for _, i := range s.InstanceList {
			kept = kept || i.ID == list[1].ID
			gone = gone && i.ID != list[0].ID
		}
		return kept && gone && s.Instances.Ready == 2
	}, "that one is replaced, and the other kept")
}

func TestDecisionsHaveReasonsAndInputs(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "idle_timeout 200ms", "scale queue"))
	wantOK(t, c.Get("/"))
	c.AwaitProcesses(0, soon)
	raw := decode[[]map[string]any](t, c.Admin("GET", "/usher/services/web/decisions", ""))
	for _, d := range raw {
		wantKeys(t, "a decision", d, []string{"time", "from", "to", "reason", "inputs"})
	}
	var up, down bool
	for _, d := range c.Decisions("web") {
		up = up || d.From == 0 && d.To == 1
		down = down || d.From == 1 && d.To == 0
		if d.Reason == "" || len(d.Inputs) == 0 || time.Since(d.Time) > time.Minute {
			t.Errorf("%+v", d)
		}
	}
	if !up || !down {
		t.Errorf("up %t, down %t: %+v", up, down, raw)
	}
}

func TestEventStreamTellsTheLifeOfAService(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "idle_timeout 300ms", "scale queue"))
	events := c.Events()
	if got := events.Response.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		t.Errorf("Content-Type %q", got)
	}
	wantOK(t, c.Get("/"))
	for _, word := range []string{"waking", "awake", "asleep"} {
		e := events.Until(t, soon, func(e harness.Event) bool {
			return strings.Contains(e.Data, `"web"`) && strings.Contains(e.Data, word)
		})
		if e.Name == "" || !json.Valid([]byte(e.Data)) {
			t.Errorf("an event without a name, or not in JSON: %+v", e)
		}
	}
}
