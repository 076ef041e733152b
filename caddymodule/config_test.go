package caddymodule

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/policies"
)

// jsonApps is a configuration whose app and handler are given.
func jsonApps(app, handler string) string {
	if app == "" {
		app = "{}"
	}
	routes := ""
	if handler != "" {
		routes = `{"handle":[` + handler + `,{"handler":"reverse_proxy","dynamic_upstreams":{"source":"usher"}}]}`
	}
	return `{"apps":{"usher":` + app + `,"http":{"servers":{"main":{"listen":[":80"],"automatic_https":{"disable":true},"routes":[` + routes + `]}}}}}`
}

func TestValuesInJSONAreChecked(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]string{
		`"instances":{"min":-1}`:                                   "the minimum is -1",
		`"instances":{"max":-1}`:                                   "the maximum is -1",
		`"instances":{"min":3,"max":2}`:                            "the minimum 3 is greater than the maximum 2",
		`"concurrency":0`:                                          "concurrency must be",
		`"concurrency":-1`:                                         "concurrency must be",
		`"concurrency":"lots"`:                                     "concurrency must be",
		`"idle_timeout":0`:                                         "idle_timeout must be positive",
		`"idle_timeout":"-1s"`:                                     "idle_timeout must be positive",
		`"idle_timeout":"soon"`:                                    "idle_timeout",
		`"start_timeout":-1`:                                       "start_timeout must be positive",
		`"drain_timeout":-1`:                                       "drain_timeout cannot be negative",
		`"stop_timeout":-1`:                                        "stop_timeout cannot be negative",
		`"max_waiting":-1`:                                         "max_waiting cannot be negative",
		`"balance":"fairly"`:                                       "use least_loaded, oldest or random",
		`"error_detail":"long"`:                                    "use short or full",
		`"ready":{"check":"udp"}`:                                  "use tcp, http or platform",
		`"ready":{"check":"tcp","path":"/"}`:                       "belong to the http check",
		`"ready":{"interval":-1}`:                                  "cannot be negative",
		`"ready":{"check":"platform","timeout":1}`:                 "no timeout",
		`"ready":{"check":"http","path":"x"}`:                      "must begin with '/'",
		`"ready":{"check":"http","scheme":"ftp"}`:                  "use http or https",
		`"ready":{"check":"http","status":42}`:                     "42 is not a status",
		`"scale":{"policy":"queue","utilization":2}`:               "utilization must be",
		`"scale":{"policy":"queue","utilization":-1}`:              "utilization must be",
		`"scale":{"policy":"queue","down_window":-1}`:              "down_window",
		`"scale":{"policy":"magic"}`:                               "magic",
		`"backend":{"type":"nothing"}`:                             "nothing",
		`"backend":{"type":"teapot"}`:                              "which is not a backend",
		`"no_such_option":1`:                                       "no_such_option",
		`"backend":{"type":"test","fleet":"a","no_such_option":1}`: "no_such_option",
	} {
		def := `{"backend":{"type":"test","fleet":"a"},` + options + `}`
		for place, cfg := range map[string]string{
			"the app":   jsonApps(`{"services":{"web":`+def+`}}`, ""),
			"a handler": jsonApps("", `{"handler":"usher","service":"web","define":`+def+`}`),
		} {
			_, err := tryProvision(t, cfg)
			if err == nil {
				t.Errorf("%s in %s: accepted", options, place)
			} else if !strings.Contains(err.Error(), want) {
				t.Errorf("%s in %s: the message does not say %q: %v", options, place, want, err)
			}
		}
	}
}

func TestAppsAndHandlersInJSONAreChecked(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct{ app, handler, want string }{
		"ports":                 {`{"ports":"9-1"}`, "", "not a range of ports"},
		"start_limit":           {`{"start_limit":-1}`, "", "start_limit must be at least 1"},
		"max_waiting":           {`{"max_waiting":-1}`, "", "max_waiting cannot be negative"},
		"on_exit":               {`{"on_exit":"run"}`, "", "use stop or keep"},
		"a name":                {`{"services":{"Web!":{"backend":{"type":"test"}}}}`, "", "is not a service name"},
		"null":                  {`{"services":{"web":null}}`, "", "service web (apps.usher.services.web): the definition is null"},
		"no backend":            {`{"services":{"web":{}}}`, "", "no backend"},
		"no name in a handler":  {"", `{"handler":"usher"}`, "is not a service name"},
		"wait_timeout":          {"", `{"handler":"usher","service":"web","wait_timeout":-1}`, "wait_timeout must be positive"},
		"wake":                  {"", `{"handler":"usher","service":"web","wake":[{"magic":{}}]}`, "wake"},
		"app and handler":       {`{"services":{"web":{"backend":{"type":"test"}}}}`, `{"handler":"usher","service":"web","define":{"backend":{"type":"test"},"max_waiting":1}}`, "apps.usher.services.web and a handler of the HTTP server main differ in max_waiting"},
		"two handlers":          {"", `{"handler":"usher","service":"web","define":{"backend":{"type":"test"}}},{"handler":"usher","service":"web","define":{"backend":{"type":"test","fleet":"x"}}}`, "differ in backend"},
		"a secret":              {"", `{"handler":"usher","service":"web","define":{"backend":{"type":"test"}},"proxy":{},"async":{"callback":{"allow":["https://a.example"],"secrets":["{env.NO_SUCH_SECRET}"]}}}`, "web: async: callback: secret: '{env.NO_SUCH_SECRET}' is empty"},
		"a prefix":              {"", `{"handler":"usher","service":"web","define":{"backend":{"type":"test"}},"proxy":{},"async":{"callback":{"allow_private":["a.example"],"secrets":["x"]}}}`, "web: async: callback: allow_private: 'a.example' is no prefix of URLs"},
		"reverse_proxy dynamic": {"", `{"handler":"usher","service":"web"},{"handler":"reverse_proxy","dynamic_upstreams":{"source":"usher","x":1}}`, "x"},
	} {
		if _, err := tryProvision(t, jsonApps(x.app, x.handler)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: the message does not say %q: %v", name, x.want, err)
		}
	}
}

func TestEqualDefinitionsInJSONMayStandAnyNumberOfTimes(t *testing.T) {
	t.Parallel()
	plain := `{"backend":{"type":"test","fleet":"a"}}`
	spelled := `{"backend":{"fleet":"a","type":"test"},"instances":{"max":1},"concurrency":100,"idle_timeout":"5m","start_timeout":"2m","start_attempts":3,
		"drain_timeout":"30s","stop_timeout":"10s","max_waiting":1000,"balance":"least_loaded","ready":{"check":"tcp","timeout":"1s"},
		"scale":{"policy":"adaptive","prewarm":true},"error_detail":"short"}`
	cfg := jsonApps(`{"services":{"web":`+plain+`}}`, `{"handler":"usher","service":"web","define":`+spelled+`}`)
	if _, err := tryProvision(t, cfg); err != nil {
		t.Error(err)
	}
}

func TestTheDefaultPolicyIsTheModuleOfThatNameWithItsDefaults(t *testing.T) {
	t.Parallel()
	info, err := caddy.GetModule("usher.policies." + policies.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	p := info.New().(*AdaptivePolicy)
	if err := p.Provision(caddy.Context{}); err != nil || p.Adaptive != policies.Default {
		t.Errorf("%v, %+v", err, p.Adaptive)
	}
}

func TestServiceThatNobodyDefinesFailsTheStartOnly(t *testing.T) {
	t.Parallel()
	c := provision(t, site("usher ghost-of-this-test"))
	if err := c.app.Start(); err == nil || !strings.Contains(err.Error(), "service ghost-of-this-test is not defined, but a handler of the HTTP server srv0 uses it") {
		t.Errorf("%v", err)
	}
	c.end()
	if h := hub.Latest.Load(); h != nil && h.Service("ghost-of-this-test") != nil {
		t.Error("it is there all the same")
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	var s hub.ServiceConfig
	if err := json.Unmarshal([]byte(`{"backend":{"type":"test","fleet":"a","secret":"hush"},
		"ready":{"check":"http","headers":{"Authorization":["Bearer hush"],"X-Two":["hush","hush"]}}}`), &s); err != nil {
		t.Fatal(err)
	}
	d, err := hub.NewDefinition(ctx, s, "here", make(map[string]*hub.Options))
	if err != nil {
		t.Fatal(err)
	}
	shown, err := d.Shown()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(shown); strings.Contains(got, "hush") || !strings.Contains(got, `"type":"test"`) || !strings.Contains(got, `"Authorization":["***"]`) {
		t.Error(got)
	}
	if d.Service.Ready.Headers.Get("Authorization") != "Bearer hush" {
		t.Error("the check lost its header")
	}
	fields, err := d.Fields()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fields["ready"], "hush") {
		t.Error("definitions that differ in a secret only would be equal")
	}
}

func TestRevisionIsWhatTheBackendSays(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	for _, next := range []string{f.usher("concurrency 7", "instances 0 3"), "usher " + f.name + " {\nbackend test " + f.name + " other\n}\n"} {
		n := start(t, site(next))
		c.end()
		c = n
	}
	if got := strings.Join(f.flavours, ","); got != ",other" {
		t.Errorf("opened: %q", got)
	}
}

func TestOptionsOfTheServiceRoundTripThroughJSON(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{"concurrency":"unlimited","idle_timeout":"off"}`, `{"concurrency":5,"idle_timeout":"1m0s"}`} {
		var s hub.ServiceConfig
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		if got := string(mustJSON(s)); got != text {
			t.Errorf("%s became %s", text, got)
		}
	}
}
