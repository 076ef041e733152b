package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
)

// dashboard is what is of interest in a dashboard of Grafana.
type dashboard struct {
	Title      string
	Templating struct {
		List []struct{ Name, Definition string }
	}
	Panels []struct {
		Type, Title, Description string
		Targets                  []struct{ Expr, LegendFormat string }
	}
}

// without gives back what is configured to last, at once: how long a condition
// has to hold is Prometheus's business.
func without(rules string) string {
	return regexp.MustCompile(`(?m)^(\s+for:) \S+$`).ReplaceAllString(rules, "$1 0s")
}

// nowhere is a kubeconfig of a cluster that refuses connections.
func nowhere(t *testing.T, c *harness.Caddy) string {
	t.Helper()
	address := addr.Refusing(t)
	path := c.Path("kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": [{"name": "c", "cluster": {"server": "http://%s"}}], "users": [{"name": "u", "user": {"token": "t"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}`, address)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// troubled starts a Caddy in which every kind of trouble is found, once each,
// beside a service that has none.
func troubled(t *testing.T) *harness.Caddy {
	t.Helper()
	program(t, "prometheus") // nothing is worth starting without it
	c := harness.New(t)
	const patient = "wait_timeout 10m"
	route := func(name, backend string, options ...string) string {
		return "handle /" + name + "* {\nuri strip_prefix /" + name + "\n" + harness.Usher(name, append([]string{backend}, options...)...) + "\n}\n"
	}
	c.Start(harness.Config{Global: "metrics", Site: strings.Join([]string{
		route("well", c.BackendWith("listen unix", "-socket", "{usher.socket}")), // ports would have to rest
		route("failing", c.Command("", "/bin/sh", "-c", "exit 3")),
		route("slow", c.Backend(), "concurrency 1", "instances 1 1", patient),
		route("vain", c.Backend(), "concurrency 1", "instances 1 1", "wait_timeout 100ms"),
		route("full", c.Backend(), "concurrency 1", "instances 1 1", "max_waiting 5", patient),
		route("away", "backend kubernetes deployment/web {\nkubeconfig "+nowhere(t, c)+"\n}"),
	}, "")})
	return c
}

// trouble brings about what the services of troubled are there for, and
// returns what goes on with it, to be called again and again, and what ends it.
func trouble(t *testing.T, c *harness.Caddy) (again, end func()) {
	t.Helper()
	c.AwaitReady("vain", 1, soon) // so short a wait cannot wake it
	c.AwaitReady("full", 1, soon)
	send := func(path, gate string) *harness.Pending {
		return c.Send(harness.Request{Path: path + "/hold?gate=" + c.Path(gate)})
	}
	held := []*harness.Pending{send("/vain", "gate")}
	for range 6 {
		held = append(held, send("/full", "gate"))
	}
	c.AwaitWaiting("full", 5)
	harness.Eventually(t, soon, func() bool { return c.Service("vain").Slots.InUse == 1 }, "the only slot is taken")
	for path, code := range map[string]string{"/failing/": "start_failed", "/vain/": "wait_timeout", "/away/": "platform_unavailable"} {
		if r := c.Get(path); r.UsherError() != code {
			t.Fatalf("%s: %d %s, want %s", path, r.Status, r.UsherError(), code)
		}
	}
	// A counter that begins with its first value has not increased, as
	// Prometheus sees it, so everything is done more than once.
	var slow, waits *harness.Pending
	began := time.Now()
	again = func() {
		c.Get("/vain/")
		c.Get("/failing/")
		c.Get("/well/")
		c.Post("well/sleep", "")
		switch {
		case slow == nil:
			c.Get("/slow/")
			slow = send("/slow", "slow")
			held = append(held, slow)
			began = time.Now()
		case waits == nil && c.Service("slow").Slots.InUse == 1:
			waits = send("/slow", "gate")
			held = append(held, waits)
		case time.Since(began) > 11*time.Second:
			c.Open("slow") // waiting requests get a slot after more than ten seconds
		}
	}
	return again, func() {
		c.Open("gate")
		c.Open("slow")
		for _, p := range held {
			if r := p.Wait(t, soon); r.Status != 200 {
				t.Errorf("%d %s", r.Status, r.UsherError())
			}
		}
	}
}

func TestEveryAlertFiresForWhatItIsMeantForAndForNothingElse(t *testing.T) {
	t.Parallel()
	c := troubled(t)
	rules := deployed(t, "prometheus", "usher.rules.yml")
	p := startPrometheus(t, c, without(rules))
	again, end := trouble(t, c)
	want := map[string][]string{
		"UsherServiceFailing": {"away", "failing"}, "UsherLongWaits": {"slow"}, "UsherWaitsInVain": {"vain"},
		"UsherLineNearLimit": {"full"}, "UsherPlatformUnreachable": {"away"},
	}
	const elsewhere = 6 // have tests of their own
	if n := strings.Count(rules, "- alert:"); n != len(want)+elsewhere {
		t.Errorf("%d alerts are deployed, %d are tested", n, len(want)+elsewhere)
	}
	p.fires(want, again)
	end()
}

// fires waits until all those alerts have fired, each for its services and for no
// others. again is called all the while.
func (p *prometheus) fires(want map[string][]string, again func()) {
	p.t.Helper()
	fired := make(map[string]map[string]bool)
	harness.Eventually(p.t, 2*soon, func() bool {
		again()
		all, err := p.firing()
		if err != nil {
			p.t.Fatal(err)
		}
		for alert, services := range all {
			for _, s := range services {
				if fired[alert] == nil {
					fired[alert] = make(map[string]bool)
				}
				fired[alert][s] = true
			}
		}
		return len(fired) >= len(want)
	}, "all alerts fire: %v", fired)
	for alert := range fired {
		if got := slices.Sorted(maps.Keys(fired[alert])); !slices.Equal(got, want[alert]) {
			p.t.Errorf("%s fired for %v, want %v", alert, got, want[alert])
		}
	}
}

// A Caddy that never reaches its cluster is cut off from it.
func TestTheAlertOfACaddyThatIsCutOffFires(t *testing.T) {
	t.Parallel()
	program(t, "prometheus")
	c := harness.New(t)
	url := "http://" + addr.Refusing(t).String()
	c.Start(harness.Config{
		Global: "metrics", Site: "respond ok",
		Usher: "cluster {\n\tcoordinator etcd " + url + "\n\tlisten 127.0.0.1:0\n\tadvertise 127.0.0.1:1\n\tsecret \"what all of them know\"\n}",
	})
	p := startPrometheus(t, c, without(deployed(t, "prometheus", "usher.rules.yml")))
	harness.Eventually(t, 2*soon, func() bool {
		all, err := p.firing()
		if err != nil {
			t.Fatal(err)
		}
		return all["UsherCutOff"] != nil && len(all) == 1
	}, "the alert fires, and no other one")
}

// rowOfTasks is the row of the dashboard that is about stored requests.
const rowOfTasks = "Stored requests"

// panels returns the queries of the dashboard, by panel and legend: those of stored
// requests, and all others.
func panels(t *testing.T) (others, tasks map[string]string) {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(deployed(t, "grafana", "usher.json")), &d); err != nil {
		t.Fatal(err)
	}
	for _, v := range d.Templating.List {
		if v.Name == "service" && v.Definition != "label_values(caddy_usher_target, service)" {
			t.Errorf("the services are found by %s", v.Definition)
		}
	}
	others, tasks = make(map[string]string), make(map[string]string)
	expressions := others
	for _, panel := range d.Panels {
		if panel.Type == "row" {
			if expressions = others; panel.Title == rowOfTasks {
				expressions = tasks
			}
			continue
		}
		if panel.Title == "" || panel.Description == "" || len(panel.Targets) == 0 {
			t.Errorf("a panel without a title, description or query: %+v", panel)
		}
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "1m", "$service", ".*").Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: nothing fills in %s", panel.Title, expr)
			}
			expressions[panel.Title+", "+target.LegendFormat] = expr
		}
	}
	if len(others) < 15 || len(tasks) < 6 {
		t.Fatalf("only %d and %d queries", len(others), len(tasks))
	}
	return others, tasks
}

// shows waits until each of the panels shows something, and those of which it is
// known that value. again is called all the while.
func (p *prometheus) shows(expressions map[string]string, known map[string]float64, again func()) {
	p.t.Helper()
	missing := func() []string {
		var names []string
		for name, expr := range expressions {
			all, err := p.query(expr)
			if err != nil {
				p.t.Fatalf("%s: %s: %v", name, expr, err)
			}
			if !slices.ContainsFunc(all, func(s sample) bool { return !math.IsNaN(s.value()) }) {
				names = append(names, name)
			}
		}
		return names
	}
	var names []string
	shown := harness.WaitFor(2*soon, func() bool {
		again()
		names = missing()
		return len(names) == 0
	})
	if !shown {
		p.t.Errorf("nothing is to be seen in %q", names)
	}
	for name, value := range known {
		all, err := p.query(expressions[name])
		if err != nil {
			p.t.Fatalf("%s: %q: %v", name, expressions[name], err)
		}
		if !slices.ContainsFunc(all, func(s sample) bool { return s.value() == value }) {
			p.t.Errorf("%s shows %+v, want %v", name, all, value)
		}
	}
}

func TestEveryPanelOfTheDashboardShowsWhatItIsMeantFor(t *testing.T) {
	t.Parallel()
	expressions, _ := panels(t)
	c := troubled(t)
	p := startPrometheus(t, c, "groups: []")
	again, end := trouble(t, c)
	// What is to be seen somewhere in it, where that is known.
	p.shows(expressions, map[string]float64{
		"Line, {{service}}":                         5, // of full
		"Line, as a part of its limit, {{service}}": 1,
		"Slots in use, {{service}}":                 1,
		"Target, {{service}}":                       1,
		"Failing or unreachable, services":          2,
		"Platform, {{service}}":                     0, // of away
	}, again)
	end()
}

func TestTheRulesAreWellFormed(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(program(t, "promtool"), "check", "rules", "../../deploy/prometheus/usher.rules.yml").CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
