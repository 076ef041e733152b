package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMetricsHaveTheNamesAndLabelsOfTheContract(t *testing.T) {
	c := newCaddy(t)
	startVanished(t, c, "handle /ok* {\n"+harness.Usher("ok", c.Backend())+"\n}")
	wantOK(t, c.Get("/ok"))
	wantRefusal(t, c.Get("/"), "start_failed")
	// A reservation is counted when it ends, which may be after the answer.
	harness.Eventually(t, soon, func() bool {
		return c.Metrics("caddy_usher_")[`caddy_usher_reservations_total{outcome="granted",service="ok"}`] == "1"
	}, "the request is counted")
	series := c.Metrics("caddy_usher_")
	for name, want := range map[string]string{
		`caddy_usher_waiting{service="ok"}`:                                         "0",
		`caddy_usher_target{service="ok"}`:                                          "1",
		`caddy_usher_instances{service="ok",state="ready"}`:                         "1",
		`caddy_usher_wait_seconds_count{outcome="granted",service="ok"}`:            "1",
		`caddy_usher_cold_start_seconds_count{service="ok"}`:                        "1",
		`caddy_usher_decisions_total{direction="up",service="ok"}`:                  "1",
		`caddy_usher_platform_up{service="ok"}`:                                     "1",
		`caddy_usher_reservations_total{outcome="start_failed",service="web"}`:      "1",
		`caddy_usher_start_failures_total{reason="exec",service="web"}`:             "?",
		`caddy_usher_wait_seconds_bucket{outcome="granted",service="ok",le="+Inf"}`: "1",
		`caddy_usher_cold_start_seconds_bucket{service="ok",le="+Inf"}`:             "1",
	} {
		if got, ok := series[name]; !ok || want != "?" && got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	slots := 0
	for name := range series {
		if strings.HasPrefix(name, `caddy_usher_slots{service="ok",state=`) {
			slots++
		}
	}
	if slots < 2 {
		t.Errorf("%d series of slots: %v", slots, series)
	}
}

func TestAccessLogTellsWhoServedAndHowLongItWaited(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-delay", "100ms"), "wake /wake*"))
	wantOK(t, c.Get("/wake"))
	wantOK(t, c.Get("/warm"))
	c.Post("web/suspend", `{}`)
	wantRefusal(t, c.Get("/refused"), "suspended")
	harness.Eventually(t, soon, func() bool { return len(c.AccessLog()) == 3 }, "three lines of the access log")
	fields := make(map[string]map[string]any)
	for _, e := range c.AccessLog() {
		usher, ok := e.Fields["usher"].(map[string]any)
		if !ok {
			t.Fatalf("no field usher: %v", e.Fields)
		}
		request, _ := e.Fields["request"].(map[string]any)
		fields[fmt.Sprint(request["uri"])] = usher
	}
	cold, warm, refused := fields["/wake"], fields["/warm"], fields["/refused"]
	for _, f := range []map[string]any{cold, warm} {
		wantKeys(t, "usher", f, []string{"service", "instance", "address", "wait_ms", "cold"})
	}
	if cold["cold"] != true || warm["cold"] != false {
		t.Errorf("cold: %v, then %v", cold["cold"], warm["cold"])
	}
	if ms, _ := cold["wait_ms"].(float64); ms < 100 {
		t.Errorf("wait_ms is %v after a start of 100 ms", cold["wait_ms"])
	}
	if cold["instance"] != warm["instance"] || cold["instance"] == "" || cold["address"] == "" {
		t.Errorf("cold: %v; warm: %v", cold, warm)
	}
	if refused["service"] != "web" {
		t.Errorf("refused: %v", refused)
	}
}

func TestPlaceholdersTellAboutTheReservation(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: "header {\n\t>X-Usher \"{http.usher.service}|{http.usher.instance}|{http.usher.address}|" +
		"{http.usher.revision}|{http.usher.wait_ms}|{http.usher.cold}\"\n}\n" + webBlock(c, args("-delay", "50ms"))})
	for _, cold := range []bool{true, false} {
		r := c.Get("/")
		wantOK(t, r)
		inst := c.Service("web").InstanceList[0]
		got := strings.Split(r.Header.Get("X-Usher"), "|")
		if len(got) != 6 {
			t.Fatalf("X-Usher: %q", r.Header.Get("X-Usher"))
		}
		ms, err := strconv.ParseFloat(got[4], 64)
		if got[0] != "web" || got[1] != inst.ID || got[2] != inst.Address || got[3] != inst.Revision ||
			err != nil || (ms >= 50) != cold || got[5] != strconv.FormatBool(cold) {
			t.Errorf("cold %t: %q; instance %+v", cold, got, inst)
		}
	}
}

func TestServerTimingIsToldOnlyWhereItIsAskedFor(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: "handle /timed* {\n\tusher web {\n\t\tserver_timing\n\t}\n}\nhandle {\n" + webBlock(c, args("-delay", "50ms")) + "\n}"})
	cold, warm, silent := c.Get("/timed"), c.Get("/timed"), c.Get("/")
	wait := regexp.MustCompile(`\busher-wait;dur=([0-9.]+)`)
	m := wait.FindStringSubmatch(cold.Header.Get("Server-Timing"))
	if m == nil || !strings.Contains(cold.Header.Get("Server-Timing"), "usher-cold") {
		t.Fatalf("cold: %q", cold.Header.Get("Server-Timing"))
	}
	if ms, err := strconv.ParseFloat(m[1], 64); err != nil || ms < 50 {
		t.Errorf("a wait of %s ms for a start of 50 ms", m[1])
	}
	if got := warm.Header.Get("Server-Timing"); !wait.MatchString(got) || strings.Contains(got, "usher-cold") {
		t.Errorf("warm: %q", got)
	}
	if got := silent.Header.Get("Server-Timing"); got != "" {
		t.Errorf("not asked for: %q", got)
	}
}

func TestLogTellsTheLifeOfAServiceAndNothingPerRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: webBlock(c, nil, "idle_timeout 300ms", "scale queue")})
	wantOK(t, c.Get("/"))
	lines := func() int {
		n := 0
		for _, e := range c.Log() {
			if strings.HasPrefix(e.Logger, "usher") {
				n++
			}
		}
		return n
	}
	if lines() == 0 {
		t.Error("nothing is logged about a cold start")
	}
	harness.Eventually(t, soon, func() bool { return c.Service("web").State == "awake" }, "awake")
	before := lines()
	for range 50 {
		wantOK(t, c.Get("/"))
	}
	if more := lines() - before; more > 10 {
		t.Errorf("%d lines for 50 requests", more)
	}
	c.AwaitProcesses(0, soon)
	for _, e := range c.Log() {
		if e.Level == "error" {
			t.Errorf("an error in the log of a healthy life: %s %v", e.Msg, e.Fields)
		}
	}
}
