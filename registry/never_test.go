package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

// These are the things that must never be possible, each tried through every way into
// the registry.

// evilValues are values of params that try to be more than one string, or another one.
var evilValues = []string{
	"", "a b", "a\n", "a\x00b", "a\r\nB: c", "{env.SECRET}", "{usher.port}", "a{", "a}", `a\`, `a","--exec","/bin/sh`, `a"}}`, "$(id)", "`id`",
	"a;id", "../../etc/passwd", "-x", "\u2028", "\u202e", "\xff", strings.Repeat("a", 256), "***", "A", "ａ",
}

// ways are the ways by which a value of a param of the service shop comes in. Each
// returns the service that would run, or an error.
var ways = map[string]func(w *world, param, value string) (json.RawMessage, error){
	"PUT": putParam,
	"PATCH": func(w *world, param, value string) (json.RawMessage, error) {
		record, err := w.Patch(w.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop", []byte(`{"params":{`+quote(param)+`:`+quote(value)+`}}`))
		if strings.Contains(value, "\xff") {
			return nil, errors.New("JSON cannot hold it")
		}
		return w.resolved(record, err)
	},
	"rollback": func(w *world, param, value string) (json.RawMessage, error) {
		// The revision is from a time when the template took any value.
		w.Use(lax(w))
		if _, err := putParam(w, param, value); err != nil {
			return nil, err
		}
		w.put(onlyIf(w.owner("ann"), w.Get("shop")), "shop", web("other"))
		w.Use(w.rules)
		record, err := w.Rollback(w.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop", 0)
		return w.resolved(record, err)
	},
	"a rule that became stricter": func(w *world, param, value string) (json.RawMessage, error) {
		w.Use(lax(w))
		if _, err := putParam(w, param, value); err != nil {
			return nil, err
		}
		w.Use(w.rules)
		return w.resolved(w.Get("shop"), nil)
	},
	"another Caddy": func(w *world, param, value string) (json.RawMessage, error) {
		other := newWorld(w.T)
		other.now = w.now.Add(1e9)
		other.put(other.owner("ann"), "shop", web("shop"))
		other.Use(lax(other))
		if _, err := putParam(other, param, value); err != nil {
			return nil, err
		}
		if err := w.Merge(w.Context(), other.Get("shop")); err != nil {
			return nil, err
		}
		return w.resolved(w.Get("shop"), nil)
	},
	"a request": func(w *world, param, value string) (json.RawMessage, error) {
		name, service, err := w.Variant("shop", map[string]string{param: value})
		if err == nil && service == nil {
			return w.resolved(w.Get(name), nil)
		}
		return service, err
	},
}

func putParam(w *world, param, value string) (json.RawMessage, error) {
	params := map[string]string{"name": "shop"}
	params[param] = value
	body, err := json.Marshal(registry.Definition{Template: "web", Params: params})
	if err != nil {
		return nil, err
	}
	if !strings.Contains(string(body), quote(value)) || strings.Contains(value, "\xff") {
		body = []byte(`{"template":"web","params":{"name":"shop","` + param + `":"` + value + `"}}`) // as bytes
	}
	record, _, err := w.Put(w.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop", body)
	return w.resolved(record, err)
}

// lax are rules whose template takes any value that any template can.
func lax(w *world) registry.Rules {
	params := webParams()
	for name, p := range params {
		p.Pattern, p.OneOf = "(?s).*", nil
		params[name] = p
	}
	template, err := registry.NewTemplate(webTemplate, params, takesArgsAndEnv, 100)
	if err != nil {
		w.Fatal(err)
	}
	rules := w.rules
	rules.Templates = map[string]*registry.Template{"web": template}
	return rules
}

func (w *world) resolved(record *registry.Record, err error) (json.RawMessage, error) {
	if err != nil {
		return nil, err
	}
	return w.Resolve(&record.InForce().Definition)
}

// 1. No request and no owner chooses what is executed: values stand only where the
// template has them, and match as a whole.
func TestNeverAValueThatNoPatternPermits(t *testing.T) {
	for way, try := range ways {
		t.Run(way, func(t *testing.T) {
			for _, param := range []string{"name", "team", "SIZE"} {
				for _, value := range evilValues {
					w := newWorld(t)
					w.put(w.owner("ann"), "shop", web("shop"))
					if service, err := try(w, param, value); err == nil {
						t.Errorf("param %s took %q: %s", param, value, service)
					}
				}
			}
			// A variable or an option that is no param.
			for _, param := range []string{"PATH", "LD_PRELOAD", "command", "args", "backend", "size", "", "name\x00", "param.name"} {
				w := newWorld(t)
				w.put(w.owner("ann"), "shop", web("shop"))
				if service, err := try(w, param, "small"); err == nil {
					t.Errorf("there is a param %q: %s", param, service)
				}
			}
		})
	}
}

func TestAValueThatIsPermittedStandsOnlyInItsPlace(t *testing.T) {
	for way, try := range ways {
		t.Run(way, func(t *testing.T) {
			for param, values := range map[string][]string{"name": {"web-2", "a"}, "team": {"red", "blue"}, "SIZE": {"large", "small"}} {
				if way == "a request" && param != "SIZE" {
					continue
				}
				for _, value := range values {
					w := newWorld(t)
					w.put(w.owner("ann"), "shop", web("shop"))
					service, err := try(w, param, value)
					if err != nil {
						t.Errorf("param %s did not take %q: %v", param, value, err)
						continue
					}
					want := map[string]string{"name": "shop", "team": "red", "SIZE": "small"}
					want[param] = value
					wantService(t, service, want)
				}
			}
		})
	}
}

// wantService checks that a service is that of webTemplate with these values.
func wantService(t *testing.T, service json.RawMessage, values map[string]string) {
	t.Helper()
	want := fmt.Sprintf(`{"backend":{"args":["--port","{usher.port}",%s],"command":"/srv/run","env":{"NAME":%s,"SIZE":%s},"type":"process"},"concurrency":10}`,
		quote("--team="+values["team"]), quote(values["name"]), quote(values["SIZE"]))
	if string(service) != want {
		t.Errorf("the service is\n%s, want\n%s", service, want)
	}
}

// 2. A name never becomes a path.
func TestNeverANameThatIsAPath(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"", ".", "..", "../x", "a/../../x", "/etc/passwd", `a\b`, "a..r1", "a..p0123456789abcdef", "a\x00", "a\n", "A", "%2e%2e%2f", strings.Repeat("a", 64)} {
		operator := registry.Call{Operator: true, Now: w.now}
		_, _, err := w.Put(t.Context(), operator, name, []byte(web("x")))
		w.want(err, registry.Invalid, "not a service name")
		_, err = w.Patch(t.Context(), operator, name, []byte(`{}`))
		w.want(err, registry.Invalid, "not a service name")
		_, err = w.Rollback(t.Context(), operator, name, 1)
		w.want(err, registry.Invalid, "not a service name")
		w.want(w.Delete(t.Context(), operator, name), registry.NotFound, "")
		if _, err := registry.DecodeRecord([]byte(`{"version":1,"name":` + quote(name) + `,"revisions":[{"number":1,"definition":{"template":"web"}}]}`)); err == nil {
			t.Errorf("a record of another Caddy has the name %q", name)
		}
		w.SetFound("k", "kubernetes", []registry.Found{w.object("ok", 1, map[string]string{"name": name + "/"}), w.object(name+"..", 1, nil)})
		if len(w.List()) != 0 {
			t.Errorf("a label gave the name %q", w.List()[0].Name)
		}
	}
}

// 3. Requests do not make services without bound, nor end one that runs.
func TestNeverMoreVariantsThanTheTemplatePermits(t *testing.T) {
	w := newWorld(t)
	w.rules.Evict = func(string) bool { return false } // all of them run
	w.sizes(10)
	w.put(w.owner("ann"), "shop", web("shop"))
	w.put(w.owner("bob"), "bobs", web("bobs"))
	made := map[string]bool{}
	for i := range 1000 {
		name, _, err := w.Variant("shop", map[string]string{"SIZE": fmt.Sprint(i + 1)})
		if err == nil {
			made[name] = true
			continue
		}
		w.want(err, registry.TooMany, "limit")
	}
	if len(made) != 8 || len(w.Variants("shop")) != 8 {
		t.Errorf("%d variants were made, and there are %d", len(made), len(w.Variants("shop")))
	}
	w.rules.OwnerLimit = 2
	w.sizes(0x7fff)
	for i := range 5 {
		_, _, err := w.Put(t.Context(), w.owner("cid"), fmt.Sprintf("s%d", i), []byte(web("x")))
		if i >= 2 {
			w.want(err, registry.TooMany, "2 services")
		} else if err != nil {
			t.Error(err)
		}
	}
	// Nor by deleting, making another, and rolling back.
	if err := w.Delete(t.Context(), onlyIf(w.owner("cid"), w.Get("s0")), "s0"); err != nil {
		t.Fatal(err)
	}
	w.put(w.owner("cid"), "s9", web("x"))
	_, err := w.Rollback(t.Context(), w.owner("cid"), "s0", 0)
	w.want(err, registry.TooMany, "2 services")
}

// 4. Only an operator defines a whole service.
func TestNeverAWholeServiceByAnOwner(t *testing.T) {
	const whole = `{"service":{"backend":{"type":"process","command":"/bin/sh"}}}`
	w := newWorld(t)
	operator := registry.Call{By: "admin", Operator: true, Owner: "ann", Now: w.now}
	made := w.put(operator, "shop", whole)
	templated := w.put(w.owner("ann"), "web", web("web"))
	for _, way := range []struct {
		name string
		try  func() error
	}{
		{"PUT", func() error {
			_, _, err := w.Put(t.Context(), w.owner("ann"), "mine", []byte(whole))
			return err
		}},
		{"PUT of what is there", func() error {
			_, _, err := w.Put(t.Context(), onlyIf(w.owner("ann"), made), "shop", []byte(whole))
			return err
		}},
		{"PATCH of another field", func() error {
			_, err := w.Patch(t.Context(), onlyIf(w.owner("ann"), made), "shop", []byte(`{"hosts":["a.example.com"]}`))
			return err
		}},
		{"PATCH", func() error {
			_, err := w.Patch(t.Context(), onlyIf(w.owner("ann"), templated), "web", []byte(`{"template":null,"params":null,`+whole[1:]))
			return err
		}},
		{"rollback", func() error {
			call := operator
			call.Now = w.now
			later := w.put(onlyIf(call, made), "shop", web("shop"))
			_, err := w.Rollback(t.Context(), onlyIf(w.owner("ann"), later), "shop", 1)
			return err
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			w.T = t
			w.want(way.try(), registry.Forbidden, "only operators")
		})
	}
	w.T = t
	// Nor by an operator with a backend that the registry does not allow, however its type
	// is written.
	call := registry.Call{Operator: true, Now: w.now}
	for _, body := range []string{
		`{"service":{"backend":{"type":"docker","image":"x"}}}`,
		`{"service":{"backend":{"type":"process"},"BACKEND":{"type":"docker"}}}`,
		`{"service":{"backend":{"type":"process","Type":"docker"}}}`,
		`{"service":{"backend":{"type":"process","type":"docker"}}}`,
		`{"service":{"backend":{"type":"process"},"backend":{"type":"docker"}}}`,
	} {
		if _, _, err := w.Put(t.Context(), call, "op", []byte(body)); err == nil {
			t.Errorf("the registry took %s", body)
		}
	}
	// Nor with a template that it does not allow.
	_, _, err := w.Put(t.Context(), call, "op", []byte(`{"template":"hidden","params":{"name":"x"}}`))
	w.want(err, registry.Invalid, "no template")
}

// 5. A label defines neither what runs nor another object.
func TestNeverAnotherBackendByALabel(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{"backend", "Backend", "process", "command", "args", "env", "image", "user", "dir", "address", "namespace", "resource", "owner", "template", "params", "service", "fallback", "port"} {
		for _, value := range []string{"x", `{"type":"process"}`} {
			w.SetFound("k", "kubernetes", []registry.Found{w.object("web", 1, map[string]string{key: value})})
			if record := w.Get("web"); record != nil {
				t.Errorf("label %s=%s made %s", key, value, record.Current().Definition.Service)
			}
		}
	}
	// What a permitted label says stays in its own option.
	for _, key := range []string{"instances", "concurrency", "idle-timeout", "start-timeout", "drain-timeout", "ready", "scale", "name", "hosts"} {
		for _, value := range append([]string{`","backend":{"type":"process"},"x":"`, `x","type":"process`}, evilValues...) {
			w.SetFound("k", "kubernetes", []registry.Found{w.object("web", 1, map[string]string{key: value})})
			for _, record := range w.List() {
				var service map[string]json.RawMessage
				if err := json.Unmarshal(record.Current().Definition.Service, &service); err != nil {
					t.Fatal(err)
				}
				backend := string(service["backend"])
				delete(service, "backend")
				delete(service, strings.ReplaceAll(key, "-", "_"))
				if backend != `{"resource":"deployment/web","type":"kubernetes"}` || len(service) > 0 {
					t.Errorf("label %s=%q made %s", key, value, record.Current().Definition.Service)
				}
			}
		}
	}
}

// 6. A host leads to a service only if that claims it, and to one only.
func TestNeverAHostOfAnotherService(t *testing.T) {
	m := registrytest.NewMemory()
	w := newWorldOn(t, m)
	w.rules.Hosts = []string{"*.apps.example.com"}
	w.Use(w.rules)
	anns := w.put(w.owner("ann"), "shop", web("shop", "shop.apps.example.com"))
	bobs := w.put(w.owner("bob"), "bob.apps.example.com", web("x"))
	if w.ByHost("bob.apps.example.com") != "" || w.ByHost("bobs") != "" {
		t.Error("a service is found by its mere name")
	}
	const taken, other = `{"hosts":["shop.apps.example.com"]}`, `{"hosts":["shop.example.com"]}`
	_, err := w.Patch(t.Context(), onlyIf(w.owner("bob"), bobs), bobs.Name, []byte(taken))
	w.want(err, registry.Conflict, "belongs to another")
	_, err = w.Patch(t.Context(), onlyIf(w.owner("bob"), bobs), bobs.Name, []byte(other))
	w.want(err, registry.Forbidden, "may not be claimed")
	_, _, err = w.Put(t.Context(), w.owner("bob"), "more", []byte(web("x", "shop.apps.example.com")))
	w.want(err, registry.Conflict, "belongs to another")
	_, _, err = w.Put(t.Context(), registry.Call{Operator: true, Now: w.now}, "more", []byte(web("x", "shop.apps.example.com")))
	w.want(err, registry.Conflict, "belongs to another")
	w.SetFound("k", "kubernetes", []registry.Found{w.object("old", 1e6, map[string]string{"hosts": "shop.apps.example.com"})})
	w.wantRejected("deployment/old", "belongs to the service shop")

	// The host changes hands, and the old claim does not come back by a rollback.
	w.SetFound("k", "kubernetes", nil)
	anns = w.put(onlyIf(w.owner("ann"), anns), "shop", web("shop"))
	w.put(w.owner("bob"), "more", web("x", "shop.apps.example.com"))
	_, err = w.Rollback(t.Context(), onlyIf(w.owner("ann"), anns), "shop", 1)
	w.want(err, registry.Conflict, "belongs to another")

	// A store in which two claim it, by another program's fault, still leads to one.
	b := newWorldOn(t, m)
	two := *w.Get("shop")
	two.Name, two.Changed = "aaa", w.now
	two.Revisions = []registry.Revision{{Number: 1, Definition: w.Get("more").Current().Definition}}
	if err := b.Merge(t.Context(), &two); err != nil {
		t.Fatal(err)
	}
	if got := b.ByHost("shop.apps.example.com"); got != "aaa" {
		t.Errorf("the host leads to %q", got)
	}
	// A service that the configuration shadows is not found by its hosts.
	w.rules.Configured = func(name string) bool { return name == "more" }
	w.Use(w.rules)
	if w.ByHost("shop.apps.example.com") != "" || w.Get("more") == nil {
		t.Error("a host of the run-time service leads to the service of the configuration")
	}
}

// maskEnv shows the secrets of the test's backends as "***".
func maskEnv(service json.RawMessage) (json.RawMessage, error) {
	var s map[string]any
	if err := json.Unmarshal(service, &s); err != nil {
		return nil, err
	}
	backend := s["backend"].(map[string]any)
	if backend["type"] == "process" {
		env, _ := backend["env"].(map[string]any)
		for key := range env {
			env[key] = "***"
		}
		if url, ok := backend["url"].(string); ok {
			before, after, _ := strings.Cut(url, "hush")
			backend["url"] = before + "***" + after
		}
	}
	return json.Marshal(s)
}

// 7. Secrets are not readable again.
func TestNeverASecretThatCanBeRead(t *testing.T) {
	w := newWorld(t)
	w.rules.Mask = maskEnv
	w.rules.AllowBackends = []string{"process", "open"}
	w.Use(w.rules)
	operator := func() registry.Call {
		call := registry.Call{By: "admin", Operator: true, Now: w.now}
		if record := w.Get("shop"); record != nil {
			call.IfMatch = record.ETag()
		}
		return call
	}
	const secret = `{"service":{"backend":{"type":"process","args":["x"],"env":{"KEY":"hush"},"url":"http://a:hush@b"}}}`
	first := w.put(operator(), "shop", secret)
	shown := func() string {
		t.Helper()
		b, err := json.Marshal(w.Shown(w.Get("shop")))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "hush") {
			t.Errorf("the secret is shown: %s", b)
		}
		return string(b)
	}
	if !strings.Contains(shown(), `"KEY":"***"`) {
		t.Errorf("shown is %s", shown())
	}
	// What is shown can be sent again, changed, and keeps the secret.
	body, err := json.Marshal(w.Shown(first).Current().Definition)
	if err != nil {
		t.Fatal(err)
	}
	if again := w.put(operator(), "shop", string(body)); again != first {
		t.Errorf("what was shown and sent again is a change: %+v", again.Current())
	}
	second := w.put(operator(), "shop", strings.Replace(string(body), `["x"]`, `["y"]`, 1))
	if got := string(second.Current().Definition.Service); !strings.Contains(got, `"KEY":"hush"`) || !strings.Contains(got, `a:hush@b`) || !strings.Contains(got, `"y"`) {
		t.Errorf("the change made %s", got)
	}
	third, err := w.Patch(t.Context(), operator(), "shop", []byte(`{"service":{"backend":{"env":{"KEY":"***","NEW":"1"}}}}`))
	if err != nil || !strings.Contains(string(third.Current().Definition.Service), `"KEY":"hush","NEW":"1"`) {
		t.Errorf("the patch made %+v, error %v", third, err)
	}
	shown()
	// It cannot be moved to where it would be shown.
	for _, patch := range []string{
		`{"service":{"backend":{"type":"open"}}}`,
		`{"service":{"backend":{"type":"open","env":{"KEY":"***"}}}}`,
		`{"service":{"backend":{"args":["***"]}}}`,
		`{"service":{"backend":{"env":{"OTHER":"***"}}}}`,
		`{"service":{"backend":{"url":"***"}}}`,
		`{"template":"web","service":null,"params":{"name":"***"}}`,
		`{"template":"web","service":null,"params":{"name":"shop","SIZE":"***"}}`,
	} {
		record, err := w.Patch(t.Context(), operator(), "shop", []byte(patch))
		w.want(err, registry.Invalid, "")
		if err == nil {
			t.Errorf("%s made %s", patch, record.Current().Definition.Service)
		}
	}
	if _, err := w.Rollback(t.Context(), operator(), "shop", 1); err != nil {
		t.Error(err)
	}
	shown()
	if _, _, err := w.Put(t.Context(), registry.Call{Operator: true, Now: w.now}, "new", []byte(`{"service":{"backend":{"type":"process","env":{"A":"***"}}}}`)); registry.KindOf(err) != registry.Invalid {
		t.Errorf("a mask without a secret gave %v", err)
	}
	// Nor if its backend is not there any more.
	w.rules.Mask = func(json.RawMessage) (json.RawMessage, error) { return nil, errors.New("no such module") }
	w.Use(w.rules)
	shown()
}

func TestNeverAParamThatIsASecretShown(t *testing.T) {
	w := newWorld(t)
	template, err := registry.NewTemplate(json.RawMessage(`{"backend":{"type":"process","args":["{param.open}"]}}`), map[string]registry.Param{
		"KEY": {Pattern: ".+", Env: true}, "open": {Pattern: ".+"}, "SIZE": {OneOf: []string{"small"}, Env: true},
	}, takesArgsAndEnv, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.rules.Templates["web"], w.rules.Mask = template, maskEnv
	w.Use(w.rules)
	first := w.put(w.owner("ann"), "shop", `{"template":"web","params":{"KEY":"hush","open":"a","SIZE":"small"}}`)
	shown, err := json.Marshal(w.Shown(first).Current().Definition)
	if want := `{"template":"web","params":{"KEY":"***","SIZE":"small","open":"a"}}`; err != nil || string(shown) != want {
		t.Errorf("shown is %s, error %v, want %s", shown, err, want)
	}
	second := w.put(onlyIf(w.owner("ann"), first), "shop", strings.Replace(string(shown), `"open":"a"`, `"open":"b"`, 1))
	if p := second.Current().Definition.Params; p["KEY"] != "hush" || p["open"] != "b" {
		t.Errorf("the params are %v", p)
	}
	for _, patch := range []string{`{"params":{"open":"***"}}`, `{"params":{"SIZE":"***"}}`} {
		_, err := w.Patch(t.Context(), onlyIf(w.owner("ann"), second), "shop", []byte(patch))
		w.want(err, registry.Invalid, "'***'")
	}
}
