package registry_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
)

// object is one that a platform has found, so many seconds old.
func (w *world) object(name string, age int, labels map[string]string) registry.Found {
	return registry.Found{
		Object: "deployment/" + name, Name: name, Labels: labels,
		Backend: json.RawMessage(fmt.Sprintf(`{"type":"kubernetes","resource":"deployment/%s"}`, name)),
		Since:   w.now.Add(-time.Duration(age) * time.Second),
	}
}

// wantRejected checks what is rejected: the object, and a part of the reason.
func (w *world) wantRejected(want ...string) {
	w.Helper()
	rejected := w.Rejected()
	if len(rejected)*2 != len(want) {
		w.Errorf("%d are rejected: %+v, want %q", len(rejected), rejected, want)
		return
	}
	for i, r := range rejected {
		if r.Object != want[2*i] || !strings.Contains(r.Reason, want[2*i+1]) {
			w.Errorf("rejected is %+v, want %s because of %q", r, want[2*i], want[2*i+1])
		}
	}
}

func TestAFoundObjectIsAService(t *testing.T) {
	w := newWorld(t)
	w.SetFound("kubernetes apps", "kubernetes", []registry.Found{w.object("web", 10, map[string]string{
		"hosts": "b.example.com, a.example.com", "instances": "1 4", "concurrency": "20", "idle-timeout": "off",
		"start-timeout": "90s", "drain-timeout": "5s", "ready": "http /healthz", "scale": "adaptive",
	})})
	w.wantRejected()
	record := w.Get("web")
	if record == nil || record.Origin != registry.Discovered || record.Source != "kubernetes apps: deployment/web" || record.Owner != "" {
		t.Fatalf("the service is %+v", record)
	}
	const want = `{"backend":{"resource":"deployment/web","type":"kubernetes"},"concurrency":20,"drain_timeout":"5s","idle_timeout":"off",` +
		`"instances":{"max":4,"min":1},"ready":{"check":"http","path":"/healthz"},"scale":{"policy":"adaptive"},"start_timeout":"1m30s"}`
	if got := string(record.Current().Definition.Service); got != want {
		t.Errorf("its definition is\n%s, want\n%s", got, want)
	}
	if w.ByHost("a.example.com") != "web" || w.ByHost("b.example.com") != "web" {
		t.Error("its hosts do not lead to it")
	}
	// It changes, stays, and goes.
	w.SetFound("kubernetes apps", "kubernetes", []registry.Found{w.object("web", 10, map[string]string{"concurrency": "unlimited"})})
	w.SetFound("kubernetes apps", "kubernetes", []registry.Found{w.object("web", 10, map[string]string{"concurrency": "unlimited"})})
	if w.ByHost("a.example.com") != "" {
		t.Error("a host that the object does not claim any more still leads to it")
	}
	w.SetFound("kubernetes apps", "kubernetes", nil)
	w.wantTold("+web", "web 1>2", "-web")
	if w.Get("web") != nil || len(w.AllStored()) != 0 {
		t.Error("an object that went away is still a service, or was stored")
	}
}

func TestWrongLabelsAreRejectedAndDoNotHarmOthers(t *testing.T) {
	w := newWorld(t)
	var found []registry.Found
	var names, want []string // by name, and those names come first
	for i, c := range []struct{ key, value, part string }{
		{"command", "rm -rf /", "no key"},
		{"image", "evil", "no key"},
		{"owner", "ann", "no key"},
		{"backend", "process", "no key"},
		{"name", "../x", "not a service name"},
		{"name", "a..r1", "not a service name"},
		{"hosts", "*.example.com", "not an exact host name"},
		{"hosts", "a.example.com,", "not an exact host name"},
		{"instances", "1 2 3", "greatest number"},
		{"instances", "-1", "number of instances"},
		{"concurrency", "0", "positive number"},
		{"idle-timeout", "soon", "duration"},
		{"start-timeout", "off", "duration"},
		{"drain-timeout", "-1s", "duration"},
		{"ready", "exec /bin/sh", "'http' with a path"},
		{"ready", "http x", "'http' with a path"},
		{"ready", "http /{env.SECRET}", "'http' with a path"},
		{"scale", "a/../b", "name of a policy"},
	} {
		object := w.object(fmt.Sprintf("x%02d", i), 10, map[string]string{c.key: c.value})
		found = append(found, object)
		if c.key == "name" {
			names = append(names, object.Object, c.part)
			continue
		}
		want = append(want, object.Object, c.part)
	}
	foreign := w.object("y", 10, nil)
	foreign.Backend = json.RawMessage(`{"type":"process","command":"/bin/sh"}`)
	twice := w.object("y1", 10, nil)
	twice.Backend = json.RawMessage(`{"type":"kubernetes","type":"process"}`)
	folded := w.object("y2", 10, nil)
	folded.Backend = json.RawMessage(`{"type":"kubernetes","Type":"process"}`)
	problem := w.object("z", 10, nil)
	problem.Problem, problem.Backend = "it has no port; add one", nil
	found = append(found, foreign, twice, folded, problem, w.object("zz-good", 10, nil))
	want = append(want, foreign.Object, "not of type kubernetes", twice.Object, "twice", folded.Object, "unknown option", problem.Object, "no port")
	w.SetFound("kubernetes apps", "kubernetes", found)
	w.wantRejected(append(names, want...)...)
	if w.Get("zz-good") == nil || len(w.List()) != 1 {
		t.Errorf("the services are %+v", w.List())
	}
}

func TestOfTwoObjectsThatWantTheSameTheOlderOneHasIt(t *testing.T) {
	w := newWorld(t)
	named := map[string]string{"name": "shop"}
	hosted := map[string]string{"hosts": "shop.example.com"}
	w.SetFound("a", "kubernetes", []registry.Found{w.object("one", 10, named), w.object("two", 20, named), w.object("three", 5, hosted)})
	w.SetFound("b", "kubernetes", []registry.Found{w.object("four", 30, hosted)})
	if w.Get("shop").Source != "a: deployment/two" || w.ByHost("shop.example.com") != "four" {
		t.Errorf("the services are %+v", w.List())
	}
	w.wantRejected("deployment/one", "a: deployment/two is the service shop", "deployment/three", "belongs to the service four")
	// What was taken is free again.
	w.SetFound("b", "kubernetes", nil)
	w.SetFound("a", "kubernetes", []registry.Found{w.object("one", 10, named), w.object("three", 5, hosted)})
	if w.Get("shop").Source != "a: deployment/one" || w.ByHost("shop.example.com") != "three" {
		t.Errorf("the services are %+v", w.List())
	}
	w.wantRejected()
}

func TestStoredServicesAndTheConfigurationComeBeforeFoundObjects(t *testing.T) {
	w := newWorld(t)
	stored := w.put(w.owner("ann"), "shop", web("shop", "shop.example.com"))
	w.SetFound("k", "kubernetes", []registry.Found{
		w.object("shop", 100, nil), w.object("other", 100, map[string]string{"hosts": "shop.example.com"}), w.object("configured", 100, nil), w.object("free", 100, nil),
	})
	w.wantRejected("deployment/configured", "the configuration", "deployment/other", "belongs to the service shop", "deployment/shop", "made at run time")
	w.told = nil
	// A change of the stored one lets them in, in order.
	if err := w.Delete(t.Context(), onlyIf(w.owner("ann"), stored), "shop"); err != nil {
		t.Fatal(err)
	}
	w.wantTold("-shop", "+other", "+shop")
	w.wantRejected("deployment/configured", "the configuration")
	if w.ByHost("shop.example.com") != "other" {
		t.Error("the host does not lead to the found service")
	}
	// Neither name nor host of a found service can be taken by a call.
	_, _, err := w.Put(t.Context(), w.owner("ann"), "free", []byte(web("free")))
	w.want(err, registry.Conflict, "was discovered (k: deployment/free)")
	_, err = w.Patch(t.Context(), registry.Call{Operator: true, Now: w.now, IfMatch: "*"}, "free", []byte(`{}`))
	w.want(err, registry.Conflict, "was discovered")
	_, _, err = w.Put(t.Context(), w.owner("ann"), "mine", []byte(web("mine", "shop.example.com")))
	w.want(err, registry.Conflict, "host shop.example.com")
	// The configuration's service goes away.
	w.rules.Configured = nil
	w.Use(w.rules)
	if w.Get("configured") == nil {
		t.Error("the object is no service, though its name is free")
	}
}

func TestFoundObjectsAreJudgedByTheRules(t *testing.T) {
	w := newWorld(t)
	w.rules.Hosts = []string{"*.apps.example.com", "shop.example.com"}
	w.rules.Check = func(name string, _ json.RawMessage) error {
		if name == "bad" {
			return fmt.Errorf("no such namespace")
		}
		return nil
	}
	w.Use(w.rules)
	w.SetFound("k", "kubernetes", []registry.Found{
		w.object("bad", 1, nil), w.object("a", 1, map[string]string{"hosts": "a.apps.example.com"}), w.object("b", 1, map[string]string{"hosts": "b.c.apps.example.com"}),
		w.object("c", 1, map[string]string{"hosts": "shop.example.com"}), w.object("d", 1, map[string]string{"hosts": "apps.example.com"}),
	})
	w.wantRejected("deployment/b", "may not be claimed", "deployment/bad", "no such namespace", "deployment/d", "may not be claimed")
	w.rules.Hosts, w.rules.Check = nil, nil
	w.Use(w.rules)
	w.wantRejected()
	if len(w.List()) != 5 {
		t.Errorf("the services are %+v", w.List())
	}
}
