package registry_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

// world is a registry with rules, and what it has told.
type world struct {
	*testing.T
	*registry.Registry
	rules registry.Rules
	now   time.Time
	told  []string
}

var webTemplate = json.RawMessage(`{
	"concurrency": 10,
	"backend": {"type": "process", "command": "/srv/run", "args": ["--port", "{usher.port}", "--team={param.team}"], "env": {"NAME": "{param.name}"}}
}`)

// takesArgsAndEnv is what a backend might say about params.
func takesArgsAndEnv(path ...string) bool {
	return len(path) == 2 && (path[0] == "args" || path[0] == "env" && path[1] != "PATH")
}

func webParams() map[string]registry.Param {
	return map[string]registry.Param{
		"name": {Pattern: "^[a-z][a-z0-9-]{0,30}$"},
		"team": {OneOf: []string{"red", "blue"}, Default: new("red")},
		"SIZE": {Pattern: "^(small|large)$", Env: true, Request: true, Default: new("small")},
	}
}

func newTemplate(t testing.TB, maxServices int) *registry.Template {
	t.Helper()
	template, err := registry.NewTemplate(webTemplate, webParams(), takesArgsAndEnv, maxServices)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

func newWorld(t *testing.T) *world { return newWorldOn(t, registrytest.NewMemory()) }

func newWorldOn(t *testing.T, m *registrytest.Memory) *world {
	t.Helper()
	w := &world{T: t, now: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)}
	w.Registry = registry.New(m.Open(), func(old, next *registry.Record) { w.told = append(w.told, change(old, next)) })
	w.rules = registry.Rules{
		Templates:      map[string]*registry.Template{"web": newTemplate(t, 100), "hidden": newTemplate(t, 0x7fff)},
		AllowTemplates: []string{"web"},
		AllowBackends:  []string{"process"},
		Configured:     func(name string) bool { return name == "configured" },
	}
	w.Use(w.rules)
	if err := w.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func change(old, next *registry.Record) string {
	switch {
	case old == nil:
		return "+" + next.Name
	case next == nil:
		return "-" + old.Name
	}
	return fmt.Sprintf("%s %d>%d", next.Name, old.InForce().Number, next.InForce().Number)
}

// owner is a call of an owner.
func (w *world) owner(name string) registry.Call {
	w.now = w.now.Add(time.Second)
	return registry.Call{By: name + "@example.com", Owner: name, Now: w.now}
}

func onlyIf(call registry.Call, record *registry.Record) registry.Call {
	call.IfMatch = record.ETag()
	return call
}

// web is the body of a service of template web.
func web(name string, hosts ...string) string {
	b, _ := json.Marshal(registry.Definition{Template: "web", Params: map[string]string{"name": name}, Hosts: hosts})
	return string(b)
}

func (w *world) put(call registry.Call, name, body string) *registry.Record {
	w.Helper()
	record, _, err := w.Put(w.Context(), call, name, []byte(body))
	if err != nil {
		w.Fatalf("PUT %s %s: %v", name, body, err)
	}
	return record
}

// want checks the kind of an error, and a part of its text.
func (w *world) want(err error, kind registry.Kind, part string) {
	w.Helper()
	if registry.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), part) {
		w.Errorf("the error is %v (kind %d), want kind %d with %q", err, registry.KindOf(err), kind, part)
	}
}

func (w *world) wantTold(want ...string) {
	w.Helper()
	if !slices.Equal(w.told, want) {
		w.Errorf("it has told %q, want %q", w.told, want)
	}
	w.told = nil
}

func TestAServiceIsMadeChangedAndDeleted(t *testing.T) {
	w := newWorld(t)
	first, created, err := w.Put(t.Context(), w.owner("ann"), "shop", []byte(web("shop", "shop.example.com")))
	if err != nil || !created || first.Owner != "ann" || first.Current().Number != 1 || first.Current().By != "ann@example.com" {
		t.Fatalf("PUT: %+v, created %t, error %v", first, created, err)
	}
	if w.Get("shop") != first || w.ByHost("shop.example.com") != "shop" {
		t.Fatal("the service is not found by its name and its host")
	}
	second := w.put(onlyIf(w.owner("ann"), first), "shop", web("store", "store.example.com"))
	if second.Current().Number != 2 || second.ETag() == first.ETag() || w.ByHost("shop.example.com") != "" || w.ByHost("store.example.com") != "shop" {
		t.Fatalf("after the change the service is %+v", second)
	}
	if err := w.Delete(t.Context(), onlyIf(w.owner("ann"), second), "shop"); err != nil {
		t.Fatal(err)
	}
	if w.Get("shop") != nil || w.ByHost("store.example.com") != "" || w.Find("shop").DeletedBy != "ann@example.com" {
		t.Fatal("the deleted service is still in force")
	}
	w.wantTold("+shop", "shop 1>2", "-shop")
}

func TestAnEqualDefinitionChangesNothing(t *testing.T) {
	w := newWorld(t)
	first := w.put(w.owner("ann"), "shop", `{"template":"web","params":{"name":"a","team":"red"},"hosts":["b.example.com","a.example.com"]}`)
	again := w.put(onlyIf(w.owner("ann"), first), "shop", ` {"hosts":["a.example.com", "b.example.com"], "params":{"team":"red","name":"\u0061"}, "template":"web"}`)
	if again != first {
		t.Errorf("an equal definition made %+v", again)
	}
	w.wantTold("+shop")
}

func TestTheConditionsOfAChange(t *testing.T) {
	w := newWorld(t)
	call := w.owner("ann")
	call.IfMatch = "*"
	_, _, err := w.Put(t.Context(), call, "shop", []byte(web("shop")))
	w.want(err, registry.Stale, "no service to match")
	call.IfMatch, call.IfNoneMatch = "", "*"
	_, created, err := w.Put(t.Context(), call, "shop", []byte(web("shop")))
	if err != nil || !created {
		t.Fatalf("If-None-Match: * did not create: %v", err)
	}
	_, _, err = w.Put(t.Context(), call, "shop", []byte(web("other")))
	w.want(err, registry.Stale, "creates only")
	call.IfNoneMatch = `"1-abc"`
	_, _, err = w.Put(t.Context(), call, "shop", []byte(web("other")))
	w.want(err, registry.Invalid, "If-None-Match")
	call.IfNoneMatch = ""

	tag := w.Get("shop").ETag()
	for _, c := range []struct {
		header string
		kind   registry.Kind
	}{
		{"", registry.ConditionNeeded},
		{`"1-0123456789ab"`, registry.Stale},
		{"W/" + tag, registry.Stale},
		{strings.Trim(tag, `"`), registry.Stale},
	} {
		call.IfMatch = c.header
		_, _, err := w.Put(t.Context(), call, "shop", []byte(web("other")))
		w.want(err, c.kind, tag)
		_, err = w.Patch(t.Context(), call, "shop", []byte(`{"hosts":["x.example.com"]}`))
		w.want(err, c.kind, tag)
		_, err = w.Rollback(t.Context(), call, "shop", 0)
		w.want(err, c.kind, tag)
		w.want(w.Delete(t.Context(), call, "shop"), c.kind, tag)
	}
	for _, header := range []string{"*", tag, `"1-0", ` + tag} {
		call.IfMatch = header
		if _, err := w.Patch(t.Context(), call, "shop", []byte(`{}`)); err != nil {
			t.Errorf("If-Match: %s: %v", header, err)
		}
	}
}
