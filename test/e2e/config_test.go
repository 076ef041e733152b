package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// Each of these is refused when the configuration is adapted or loaded, with
// a message that says what is wrong.
func TestConfigurationThatCannotBeMeantIsRefused(t *testing.T) {
	c := newCaddy(t)
	web := func(options ...string) harness.Config {
		return harness.Config{Site: harness.Usher("web", append([]string{"backend process /bin/true"}, options...)...)}
	}
	for name, f := range map[string]struct {
		cfg  harness.Config
		want []string
	}{
		"unknown subdirective of the proxy": {web("no_such_option 1"), []string{"no_such_option"}},
		"bad duration":                      {web("idle_timeout soon"), []string{"idle_timeout", "soon"}},
		"negative duration":                 {web("start_timeout -1s"), []string{"start_timeout"}},
		"min above max":                     {web("instances 3 2"), []string{"web"}},
		"no concurrency":                    {web("concurrency 0"), []string{"concurrency"}},
		"negative concurrency":              {web("concurrency -1"), []string{"concurrency"}},
		"balance that does not exist":       {web("balance fairly"), []string{"balance", "fairly"}},
		"policy that does not exist":        {web("scale by_magic"), []string{"by_magic"}},
		"bad service name":                  {harness.Config{Site: harness.Usher("Web!", "backend process /bin/true")}, []string{"Web!"}},
		"backend that does not exist":       {harness.Config{Site: harness.Usher("web", "backend teapot x")}, []string{"teapot"}},
		"to":                                {web("to localhost:1"), []string{"to"}},
		"dynamic":                           {web("dynamic a localhost 1"), []string{"dynamic"}},
		"lb_policy":                         {web("lb_policy random"), []string{"lb_policy", "balance"}},
		"lb_try_duration":                   {web("lb_try_duration 5s"), []string{"lb_try_duration", "wait_timeout"}},
		"health_uri":                        {web("health_uri /"), []string{"health_uri", "ready"}},
		"max_fails":                         {web("max_fails 3"), []string{"max_fails"}},
		"request placeholder in a command":  {harness.Config{Site: harness.Usher("web", "backend process /bin/true {port}")}, []string{"{usher.port}"}},
		"two definitions that differ": {
			harness.Config{Site: "handle /a* {\n" + harness.Usher("web", "backend process /bin/true") + "\n}\nhandle {\n" + harness.Usher("web", "backend process /bin/false") + "\n}"},
			[]string{"web"},
		},
	} {
		out, status := c.RunConfig(f.cfg, "validate")
		if status == 0 {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, want := range f.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the message does not say %q: %s", name, want, out)
			}
		}
	}
}

func TestServiceThatNobodyDefinesFailsTheLoad(t *testing.T) {
	c := newCaddy(t)
	if err := c.TryStart(harness.Config{Site: "usher ghost"}); err == nil || !strings.Contains(err.Error(), "ghost") {
		t.Errorf("the message does not name the service: %v", err)
	}
	c.Start(harness.Config{Site: "respond ok"})
	if err := c.Reload(harness.Config{Site: "usher ghost"}); err == nil || !strings.Contains(err.Error(), "ghost") {
		t.Errorf("the message of a reload does not name the service: %v", err)
	}
	// A connection can have come to the listener of the configuration that
	// was taken back; that one is lost, with stock Caddy as well.
	harness.Eventually(t, soon, func() bool { return c.Get("/").Body == "ok" }, "what was there before serves on")
}

func TestEqualDefinitionsMayStandTwice(t *testing.T) {
	c := newCaddy(t)
	block := webBlock(c, nil, "instances 0 1")
	spelled := webBlock(c, nil, "concurrency 100") // defaults, spelled out
	c.Start(harness.Config{Site: "handle /a* {\n" + block + "\n}\nhandle {\n" + spelled + "\n}"})
	a, b := c.Get("/a"), c.Get("/")
	wantOK(t, a)
	if a.Header.Get("X-Instance") != b.Header.Get("X-Instance") {
		t.Error("two places of one service have an instance each")
	}
}

func TestWaitTimeoutBeyondWriteTimeoutIsWarnedAbout(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "wait_timeout 60s")
	cfg.Global = "servers {\n\ttimeouts {\n\t\twrite 5s\n\t}\n}"
	c.Start(cfg)
	for _, e := range c.Log() {
		if e.Level == "warn" && strings.Contains(e.Msg+fmt.Sprint(e.Fields), "write_timeout") {
			return
		}
	}
	t.Error("no warning names write_timeout")
}

// jsonConfig is a configuration in JSON, as written by hand.
func jsonConfig(t *testing.T, c *harness.Caddy, define bool) harness.Config {
	t.Helper()
	type object = map[string]any
	service := object{
		"backend": object{
			"type": "process", "command": c.App(), "args": []string{},
			"env": object{"APP_MARK": c.Mark(), "APP_JOURNAL": c.Path("journal")},
		},
		"instances":    object{"min": 0, "max": 2},
		"concurrency":  1,
		"idle_timeout": "400ms",
		"scale":        object{"policy": "queue"},
	}
	handler := object{"handler": "usher", "service": "web", "wait_timeout": "10s"}
	app := object{"ports": c.PortRange()}
	if define {
		handler["define"] = service
	} else {
		app["services"] = object{"web": service}
	}
	doc := object{
		"admin": object{"listen": c.AdminAddr},
		"apps": object{
			"usher": app,
			"http": object{"grace_period": "3s", "servers": object{"main": object{
				"listen": []string{c.Addr},
				"routes": []object{{"handle": []object{
					handler,
					{"handler": "reverse_proxy", "dynamic_upstreams": object{"source": "usher"}},
				}}},
			}}},
		},
	}
	text, err := json.MarshalIndent(doc, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return harness.Config{Raw: string(text)}
}

func TestTwoHandlersComposedByHandAreTheSame(t *testing.T) {
	for name, define := range map[string]bool{"defined in the app": false, "defined in the handler": true} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(jsonConfig(t, c, define))
			var held []*harness.Pending
			for i := range 2 {
				held = append(held, c.Send(harness.Request{Path: hold(c, "gate")}))
				inside(t, c, i+1)
			}
			c.Open("gate")
			for _, p := range held {
				wantOK(t, p.Wait(t, soon))
			}
			if j := c.Journal(); j.MaxInside() != 1 || j.Starts() != 2 {
				t.Errorf("at most %d inside, %d starts", j.MaxInside(), j.Starts())
			}
			c.AwaitProcesses(0, soon)
		})
	}
}
