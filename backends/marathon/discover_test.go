package marathon

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discoverytest"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// simulated is a discoverytest.Platform: the apps of a simulated Marathon.
type simulated struct {
	sim  *marathonsim.Sim
	back func()
	made map[string]bool
}

func (a *simulated) Put(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	all := map[string]string{"HAPROXY_0_VHOST": "x"}
	for key, value := range labels {
		all[scheme.Key(key)] = value
	}
	app := map[string]any{"labels": all}
	var err error
	if a.made[name] {
		err = a.sim.UpdateApp("/"+name, app, true)
	} else {
		maps.Copy(app, map[string]any{"id": "/" + name, "cmd": "exec sleep 1000", "instances": 0})
		err = a.sim.CreateApp(app)
		a.made[name] = true
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (a *simulated) Remove(t *testing.T, name string) {
	t.Helper()
	if err := a.sim.DeleteApp("/" + name); err != nil {
		t.Fatal(err)
	}
	delete(a.made, name)
}

func (a *simulated) Away(*testing.T) {
	a.back = a.sim.Inject(marathonsim.Fault{Kind: marathonsim.FaultReset})
	a.sim.DropStreams()
}

func (a *simulated) Back(*testing.T) { a.back() }

// meant returns the plan of a description.
func meant(backend json.RawMessage) (*plan, error) {
	var typed map[string]json.RawMessage
	if err := json.Unmarshal(backend, &typed); err != nil {
		return nil, err
	}
	delete(typed, "type")
	text, err := json.Marshal(typed)
	if err != nil {
		return nil, err
	}
	b := new(Backend)
	if err := caddy.StrictUnmarshalJSON(text, b); err != nil {
		return nil, err
	}
	err = b.Provision(caddy.Context{})
	return b.plan, err
}

func discoverer(t *testing.T, d *Discoverer) *Discoverer {
	t.Helper()
	if err := d.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDiscoveryConforms(t *testing.T) {
	discoverytest.Run(t, func(t *testing.T) discoverytest.Setup {
		t.Parallel() // each check has a server of its own
		sim, err := marathonsim.New(marathonsim.Config{
			EventDelay: marathonsim.Range{Max: 5 * time.Millisecond}, AbdicateDelay: 10 * time.Millisecond,
			ElectionGap: marathonsim.Range{Min: 20 * time.Millisecond, Max: 40 * time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(sim.Close)
		auth := &BasicAuth{User: "usher", Password: "hunter2"}
		return discoverytest.Setup{
			Discoverer: discoverer(t, &Discoverer{URLs: sim.URLs(), BasicAuth: auth}),
			Platform:   &simulated{sim: sim, made: make(map[string]bool)}, Type: "marathon", Key: scheme.Key, Secrets: []string{"hunter2"},
			Means: func(backend json.RawMessage) (string, error) {
				p, err := meant(backend)
				if err != nil {
					return "", err
				}
				if !slices.Equal(p.access.urls, sim.URLs()) || p.access.password != "hunter2" {
					return "", fmt.Errorf("it is on %v", p.access.urls)
				}
				return strings.TrimPrefix(p.app, "/"), nil
			},
		}
	})
}

// A listing is a cluster of masters that answers with a list of apps.
type listing struct {
	*masters
	apps    string // JSON
	version map[string]string
}

func newListing(t *testing.T, nodes int) *listing {
	t.Helper()
	l := &listing{masters: newMasters(t, nodes), version: make(map[string]string)}
	l.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		app, ofVersions := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v2/apps"), "/versions")
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case r.URL.Path == "/v2/apps":
			fmt.Fprintf(w, `{"apps":[%s]}`, l.apps)
		case ofVersions && l.version[app] != "":
			fmt.Fprintf(w, `{"versions":[%s]}`, l.version[app])
		case ofVersions:
			w.WriteHeader(http.StatusNotFound)
		default:
			return false
		}
		return true
	})
	return l
}

// labelledApp is an app as the list shows it.
func labelledApp(id string, version int, labels string) string {
	return fmt.Sprintf(`{"id":%q,"version":%q,"labels":{"USHER_ENABLE":"true"%s},"env":{"PASSWORD":{"secret":"s1"}},"instances":0}`, id, stamp(version), labels)
}

// A finder collects what a discovery reports.
type finder struct {
	t  *testing.T
	mu sync.Mutex

	lists int
	last  []scaler.Found
	errs  []error
}

func find(t *testing.T, d *Discoverer) *finder {
	t.Helper()
	f := &finder{t: t}
	run, err := discoverer(t, d).Discover(scaler.DiscoverEnv{
		Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }, Report: f.report,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.Close)
	return f
}

func (f *finder) report(found []scaler.Found, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
		return
	}
	f.lists++
	f.last = found
}

func (f *finder) all() (found []scaler.Found, lists int, errs []error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.lists, f.errs
}

func (f *finder) has(apps ...string) []scaler.Found {
	f.t.Helper()
	var found []scaler.Found
	eventually(f.t, func() bool {
		var lists int
		found, lists, _ = f.all()
		names := []string{}
		for _, one := range found {
			names = append(names, strings.TrimPrefix(one.Object, "app "))
		}
		return lists > 0 && slices.Equal(names, apps)
	}, "%v to be found", apps)
	return found
}

func TestAnAppIsAsOldAsItsFirstVersion(t *testing.T) {
	m := newListing(t, 1)
	m.apps = labelledApp("/prod/web", 5, "") + "," + labelledApp("/prod/api", 6, `,"USHER_PORT":"http"`) + "," + labelledApp("/prod/db", 7, `,"USHER_PORT":"2"`)
	m.version["/prod/web"] = fmt.Sprintf("%q,%q,%q", stamp(5), stamp(1), stamp(3))
	found := find(t, &Discoverer{URLs: m.urls()}).has("/prod/api", "/prod/db", "/prod/web")
	for i, want := range []struct {
		name  string
		since int
		port  port
	}{{"prod-api", 6, port{name: "http"}}, {"prod-db", 7, port{index: 2}}, {"prod-web", 1, port{}}} {
		f := found[i]
		p, err := meant(f.Backend)
		if err != nil || f.Name != want.name || !f.Since.Equal(when(stamp(want.since))) || p.port != want.port || "app "+p.app != f.Object {
			t.Errorf("found is %+v with the backend %s (%v), not %+v", f, f.Backend, err, want)
		}
	}
}

func TestAnOldListChangesNothing(t *testing.T) {
	m := newListing(t, 1)
	fresh := labelledApp("/web", 5, `,"USHER_HOSTS":"new.example"`)
	m.apps = fresh
	f := find(t, &Discoverer{URLs: m.urls()})
	f.has("/web")
	m.awaitStream(1)
	for _, old := range []string{"", labelledApp("/web", 4, `,"USHER_HOSTS":"old.example"`)} {
		asked := m.count(http.MethodGet, "/v2/apps?")
		m.set(func() { m.apps = old })
		m.raw("data: {\"eventType\":\"deployment_success\"}\r\n\r\n")
		eventually(t, func() bool { return m.count(http.MethodGet, "/v2/apps?") > asked }, "a look")
		m.set(func() { m.apps = fresh })
		asked = m.count(http.MethodGet, "/v2/apps?")
		m.raw("data: {\"eventType\":\"deployment_success\"}\r\n\r\n")
		eventually(t, func() bool { return m.count(http.MethodGet, "/v2/apps?") > asked }, "another look")
	}
	if found, lists, _ := f.all(); lists != 1 || found[0].Labels["hosts"] != "new.example" {
		t.Errorf("%d lists, the last one %+v", lists, found)
	}
	m.set(func() { m.apps = "" })
	m.raw("data: {\"eventType\":\"app_terminated_event\"}\r\n\r\n")
	f.has()
}

func TestEventsOfTasksAreNoReasonToLook(t *testing.T) {
	m := newListing(t, 1)
	f := find(t, &Discoverer{URLs: m.urls()})
	m.awaitStream(1)
	f.has()
	time.Sleep(300 * time.Millisecond) // the look for the new stream
	asked := m.count(http.MethodGet, "/v2/apps?")
	for range 10 {
		m.event("/web")
	}
	m.set(func() { m.apps = labelledApp("/web", 1, "") })
	m.raw("data: {\"eventType\":\"deployment_info\"}\r\n\r\n")
	f.has("/web")
	if n := m.count(http.MethodGet, "/v2/apps?") - asked; n != 1 {
		t.Errorf("it was looked %d times", n)
	}
}

func TestWithoutEventsTheAppsAreListedAllTheSame(t *testing.T) {
	m := newListing(t, 1)
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/v2/events" {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	f := find(t, &Discoverer{URLs: m.urls()})
	f.has()
	m.set(func() { m.apps = labelledApp("/web", 1, "") })
	f.has("/web")
}

func TestAServerThatDoesNotKnowTheQueryMakesNoServices(t *testing.T) {
	m := newListing(t, 1)
	m.apps = `{"id":"/other","version":"` + stamp(1) + `"},` + labelledApp("/web", 1, "")
	find(t, &Discoverer{URLs: m.urls()}).has("/web")
}

func TestAnAnswerThatIsNoneEndsNoService(t *testing.T) {
	m := newListing(t, 2)
	m.apps = labelledApp("/web", 1, "")
	f := find(t, &Discoverer{URLs: m.urls()})
	f.has("/web")
	m.rule(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == "/v2/apps" {
			fmt.Fprint(w, `{}`)
		}
		return r.URL.Path == "/v2/apps"
	})
	m.raw("data: {\"eventType\":\"deployment_info\"}\r\n\r\n")
	eventually(t, func() bool { _, _, errs := f.all(); return len(errs) == 1 }, "an error")
	if _, lists, _ := f.all(); lists != 1 {
		t.Errorf("%d lists", lists)
	}
}

func TestDiscoveryWithoutItsCertificatesAsksNoServer(t *testing.T) {
	m := newListing(t, 1)
	f := find(t, &Discoverer{URLs: m.urls(), CAFile: filepath.Join(t.TempDir(), "none")})
	eventually(t, func() bool { _, _, errs := f.all(); return len(errs) == 1 }, "an error")
	_, _, errs := f.all()
	if failure, ok := errors.AsType[*scaler.Failure](errs[0]); !ok || failure.Reason != scaler.ReasonNotFound || m.count(http.MethodGet, "/") > 0 {
		t.Errorf("%d calls, and the error %v", m.count(http.MethodGet, "/"), errs[0])
	}
}

func TestTheDiscoveryInTheCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		"marathon": `{}`,
		"marathon {\n url http://a:8080 http://b:8080\n basic_auth u p\n ca_file /ca\n}": `{"urls":["http://a:8080","http://b:8080"],"basic_auth":{"user":"u","password":"p"},"ca_file":"/ca"}`,
		"marathon {\n token_file /t\n}": `{"token_file":"/t"}`,
	} {
		var d Discoverer
		if err := d.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, _ := json.Marshal(&d); string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	for text, words := range map[string]string{
		"marathon /apps":                                 "takes no arguments",
		"marathon {\n port_index 1\n}":                   "it knows url, basic_auth",
		"marathon {\n url\n}":                            "one or more base URLs",
		"marathon {\n basic_auth u p\n token_file /t\n}": "not both",
	} {
		err := new(Discoverer).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v does not say %q", text, err, words)
		}
	}
}

func TestTheDiscoveryTakesTheSharedCluster(t *testing.T) {
	shared := &Backend{URLs: []string{"http://a:8080"}, BasicAuth: &BasicAuth{User: "u", Password: "p"}}
	d := new(Discoverer)
	d.MergeDefaults(shared)
	if !slices.Equal(d.URLs, shared.URLs) || d.BasicAuth != shared.BasicAuth {
		t.Errorf("%+v", d)
	}
	own := &Discoverer{URLs: []string{"http://b:8080"}}
	own.MergeDefaults(shared)
	if own.BasicAuth != nil {
		t.Error("credentials go to another cluster")
	}
	if discoverer(t, d).Fingerprint() == discoverer(t, own).Fingerprint() || strings.Contains(d.Fingerprint(), "\"p\"") {
		t.Error("two clusters have the same fingerprint, or it shows the password")
	}
	for words, bad := range map[string]*Discoverer{
		"needs the url":      {},
		"is no URL":          {URLs: []string{"ftp://x"}},
		"not both":           {URLs: []string{"http://a"}, BasicAuth: &BasicAuth{User: "u"}, TokenFile: "/t"},
		"basic_auth needs a": {URLs: []string{"http://a"}, BasicAuth: &BasicAuth{}},
	} {
		if err := bad.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v does not say %q", bad, err, words)
		}
	}
	if _, err := new(Discoverer).Discover(scaler.DiscoverEnv{}); err == nil {
		t.Error("what is not provisioned can begin")
	}
}
