package caddymodule

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/admin"
	"github.com/caddy-usher/usher/caddymodule/answer"
)

// adminServer answers as Caddy's admin endpoint does.
func adminServer(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for _, route := range (admin.Admin{}).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			err := route.Handler.ServeHTTP(w, r)
			if err == nil {
				return
			}
			status := http.StatusInternalServerError
			if api, ok := errors.AsType[caddy.APIError](err); ok {
				status = api.HTTPStatus
			}
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		})
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

func call(t *testing.T, srv *httptest.Server, method, path, body string) reply {
	t.Helper()
	return (&config{t: t, front: srv}).do(method, path, body)
}

func object(t *testing.T, r reply) map[string]any {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(r.body), &o); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return o
}

func keys(o map[string]any) string {
	var names []string
	for _, name := range []string{
		"name", "backend", "state", "target", "min", "max", "instances", "slots", "waiting", "oldest_wait_ms", "cold_starts", "last_cold_start_ms",
		"last_error", "instance_list", "config", "id", "address", "revision", "in_use", "since", "time", "from", "to", "reason", "inputs",
		"cold_start", "why", "needed", "next",
	} {
		if _, ok := o[name]; ok {
			names = append(names, name)
		}
	}
	if len(names) != len(o) {
		names = append(names, "and others")
	}
	return strings.Join(names, " ")
}

func TestAdminShowsAServiceAsTheContractSays(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site("usher "+f.name+" {\nbackend test "+f.name+" plain hush\nconcurrency unlimited\nscale queue\n}\n"))
	c.get("/")
	srv := adminServer(t)
	const summary = "name backend state target min max instances slots waiting oldest_wait_ms cold_starts last_cold_start_ms last_error"

	var list []map[string]any
	if err := json.Unmarshal([]byte(call(t, srv, "GET", "/usher/services", "").body), &list); err != nil {
		t.Fatal(err)
	}
	found := false
	for k, o := range list {
		found = found || o["name"] == f.name && keys(o) == summary
		if k > 0 && list[k-1]["name"].(string) >= o["name"].(string) {
			t.Error("not by name")
		}
	}
	if !found {
		t.Errorf("%v", list)
	}

	eventually(t, "the end of the request", func() bool { return serving(t, f.name).Reserver.Stats().Demand == 0 })
	r := call(t, srv, "GET", "/usher/services/"+f.name, "")
	o := object(t, r)
	if keys(o) != summary+" instance_list config why needed next" {
		t.Errorf("%s", keys(o))
	}
	if strings.Contains(r.body, "hush") || !strings.Contains(r.body, `"secret":"***"`) || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", r)
	}
	i := o["instance_list"].([]any)[0].(map[string]any)
	if keys(i) != "state slots id address revision in_use since" || i["slots"] != nil || o["slots"].(map[string]any)["total"] != nil {
		t.Errorf("%s %v", keys(i), o["slots"])
	}
	if o["last_error"] != nil || o["state"] != "awake" || o["backend"] != "test" || o["cold_starts"] != 1.0 {
		t.Errorf("%v", o)
	}
	if cfg := o["config"].(map[string]any); cfg["concurrency"] != "unlimited" || cfg["max_waiting"] != 1000.0 {
		t.Errorf("the config is not the effective one: %v", cfg)
	}

	var decisions []map[string]any
	if err := json.Unmarshal([]byte(call(t, srv, "GET", "/usher/services/"+f.name+"/decisions", "").body), &decisions); err != nil {
		t.Fatal(err)
	}
	if len(decisions) != 1 || keys(decisions[0]) != "time from to reason inputs cold_start" {
		t.Errorf("%v", decisions)
	}
}

func TestAdminRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher()))
	srv := adminServer(t)
	web := "/usher/services/" + f.name
	for _, x := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/usher/", "", 404},
		{"GET", "/usher/nothing", "", 404},
		{"GET", "/usher/services/", "", 404},
		{"GET", "/usher/services/missing", "", 404},
		{"POST", "/usher/services/missing/wake", "", 404},
		{"GET", web + "/", "", 404},
		{"GET", web + "/nothing", "", 404},
		{"POST", web + "/dance", "", 404},
		{"POST", web + "/wake/up", "", 404},
		{"DELETE", web + "/instances/missing", "", 404},
		{"DELETE", web + "/instances/", "", 404},
		{"DELETE", web + "/instances", "", 404},
		{"POST", "/usher/services", "", 405},
		{"POST", "/usher/events", "", 405},
		{"DELETE", web, "", 405},
		{"POST", web + "/decisions", "", 405},
		{"GET", web + "/wake", "", 405},
		{"HEAD", web + "/wake", "", 405},
		{"PUT", web + "/suspend", "{}", 405},
		{"GET", web + "/instances/x", "", 405},
		{"POST", web + "/wake", "{", 400},
		{"POST", web + "/sleep", "[]", 400},
		{"POST", web + "/restart", `{"now":true}`, 400},
		{"POST", web + "/suspend", `{"reason":1}`, 400},
		{"POST", web + "/suspend", `{"why":"x"}`, 400},
		{"POST", web + "/suspend", `{"reason":"x"} {}`, 400},
		{"POST", web + "/suspend", `{"reason":"` + strings.Repeat("x", answer.MaxBody) + `"}`, 400},
		{"HEAD", "/usher/services", "", 200},
		{"HEAD", "/usher/events", "", 200},
		{"POST", web + "/sleep", " ", 200},
		{"POST", web + "/sleep", "{}", 200},
	} {
		r := call(t, srv, x.method, x.path, x.body)
		if r.status != x.status {
			t.Errorf("%s %s %.40s: %+v", x.method, x.path, x.body, r)
		}
		if x.status >= 400 && x.method != "HEAD" && object(t, r)["error"] == "" {
			t.Errorf("%s %s: no error in %s", x.method, x.path, r.body)
		}
		if (x.status == 405) != (r.header.Get("Allow") != "") {
			t.Errorf("%s %s: Allow %q", x.method, x.path, r.header.Get("Allow"))
		}
	}
	if st := serving(t, f.name).Loop.Status(); st.State != "asleep" {
		t.Errorf("something was done: %+v", st)
	}
}

func TestAdminOperatesAService(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	srv := adminServer(t)
	web := "/usher/services/" + f.name
	post := func(op, body string) map[string]any {
		t.Helper()
		r := call(t, srv, "POST", web+"/"+op, body)
		if r.status != 200 {
			t.Fatalf("%s: %+v", op, r)
		}
		return object(t, r)
	}
	post("wake", "")
	f.ready(1)
	post("sleep", "")
	f.ordered(0)
	post("wake", "")
	f.ready(1)
	post("restart", "")
	f.until("a second revision", func() bool { return len(f.revs) == 2 && f.revs[1].Want == 1 })
	if r := c.get("/"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	eventually(t, "the end of the first revision", func() bool { return len(serving(t, f.name).Loop.Instances()) == 1 })
	id := serving(t, f.name).Loop.Instances()[0].ID
	if r := call(t, srv, "DELETE", web+"/instances/"+id, ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
	f.until("the end of the instance", func() bool {
		for _, r := range f.revs {
			if r.Instance(id) != nil {
				return false
			}
		}
		return true
	})
	if o := post("suspend", `{"reason":"repairs"}`); o["state"] != "suspended" {
		t.Errorf("%v", o)
	}
	if r := c.get("/"); r.header.Get("Usher-Error") != "suspended" || !strings.Contains(r.body, "repairs") {
		t.Errorf("%+v", r)
	}
	if r := call(t, srv, "POST", web+"/wake", ""); r.status != 409 {
		t.Errorf("wake while suspended: %+v", r)
	}
	if o := post("resume", ""); o["state"] == "suspended" {
		t.Errorf("%v", o)
	}
	if r := c.get("/"); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestAdminDoesNotPutToSleepWhatAnAwakeServiceNeeds(t *testing.T) {
	t.Parallel()
	db, app := newFleetNamed(t, "slept-db"), newFleetNamed(t, "slept-app")
	c := start(t, site(app.usher("needs slept-db")+"\nroute /db {\n"+db.usher()+"\n}\n"))
	srv := adminServer(t)
	if r := c.get("/"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	r := call(t, srv, "POST", "/usher/services/slept-db/sleep", "")
	want := "slept-db is needed by slept-app, which is awake: put slept-app to sleep first"
	if said := object(t, r)["error"]; r.status != 409 || said != want {
		t.Errorf("status %d, %q; want 409 and %q", r.status, said, want)
	}
	if r := call(t, srv, "POST", "/usher/services/slept-app/sleep", ""); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	app.ordered(0)
	eventually(t, "the need may sleep", func() bool {
		return call(t, srv, "POST", "/usher/services/slept-db/sleep", "").status == 200
	})
	db.ordered(0)
	if r := c.get("/"); r.status != 200 {
		t.Errorf("what was put to sleep does not wake: %+v", r)
	}
}

// stream opens the event stream.
func stream(t *testing.T, srv *httptest.Server) func() (name, data string) {
	t.Helper()
	resp, err := srv.Client().Get(srv.URL + "/usher/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	r := bufio.NewReader(resp.Body)
	return func() (name, data string) {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return "end", ""
			}
			switch line = strings.TrimSpace(line); {
			case strings.HasPrefix(line, "event: "):
				name = line[7:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			case line == "" && name != "":
				return name, data
			}
		}
	}
}

func TestEventsTellEveryChange(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	srv := adminServer(t)
	next := stream(t, srv)
	want := []string{"service asleep", "target 1", "state waking", "instance starting", "instance ready", "state awake"}
	mine := func() string {
		for {
			name, data := next()
			if name == "end" || name == "bye" {
				return name
			}
			var o map[string]any
			_ = json.Unmarshal([]byte(data), &o)
			switch {
			case name == "service" && o["name"] == f.name:
				return name + " " + o["state"].(string)
			case o["service"] != f.name:
			case name == "target":
				return name + " " + string(mustJSON(o["to"]))
			case name == "state":
				return name + " " + o["to"].(string)
			case name == "instance":
				return name + " " + o["state"].(string)
			}
		}
	}
	got := []string{mine()}
	c.get("/")
	for range want[1:] {
		got = append(got, mine())
	}
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || g == w
		}
		if !found {
			t.Errorf("no %q in %q", w, got)
		}
	}
}
