package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// span is what the console exporter writes of one.
type span struct {
	Name        string
	SpanContext struct{ TraceID, SpanID string }
	Parent      struct{ SpanID string }
	Links       []struct {
		SpanContext struct{ SpanID string }
	}
	Attributes []struct {
		Key   string
		Value struct{ Value any }
	}
}

func (s *span) attribute(key string) any {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.Value
		}
	}
	return nil
}

// spans returns those that Caddy has exported so far, by name.
func spans(c *harness.Caddy) map[string][]span {
	all := make(map[string][]span)
	for line := range strings.Lines(c.RawLog()) {
		var s span
		if strings.Contains(line, `"SpanContext"`) && json.Unmarshal([]byte(line), &s) == nil {
			all[s.Name] = append(all[s.Name], s)
		}
	}
	return all
}

func TestTracesShowTheColdStartBelowTheRequestThatWokeTheService(t *testing.T) {
	c := newCaddy(t)
	c.Setenv("OTEL_TRACES_EXPORTER", "console")
	c.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	cfg := web(c, args("-delay", "100ms"))
	cfg.Site = "tracing {\n\tspan front\n}\n" + cfg.Site
	c.Start(cfg)
	r := c.Get("/")
	wantOK(t, r)
	want := []string{"front", "usher.wait", "usher.cold_start", "usher.schedule", "usher.start", "usher.probe"}
	harness.Eventually(t, soon, func() bool {
		all := spans(c)
		return !slices.ContainsFunc(want, func(name string) bool { return len(all[name]) != 1 })
	}, "the spans are exported")
	all := spans(c)
	for k, below := range map[string]string{
		"usher.wait": "front", "usher.cold_start": "usher.wait",
		"usher.schedule": "usher.cold_start", "usher.start": "usher.cold_start", "usher.probe": "usher.cold_start",
	} {
		if s, parent := all[k][0], all[below][0]; s.Parent.SpanID != parent.SpanContext.SpanID || s.SpanContext.TraceID != parent.SpanContext.TraceID {
			t.Errorf("%s is not below %s", k, below)
		}
	}
	for _, name := range []string{"usher.wait", "usher.cold_start"} {
		if s := all[name][0]; s.attribute("usher.service") != "web" || s.attribute("usher.instance") != r.Header.Get("X-Instance") {
			t.Errorf("%s has the attributes %+v", name, s.Attributes)
		}
	}
}

func TestCaddysEventsTellWhatHappensToAService(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil)
	cfg.Debug = true
	c.Start(cfg)
	wantOK(t, c.Get("/"))
	c.Post("web/sleep", "")
	c.AwaitState("web", "asleep", soon)
	// Caddy logs every event that is emitted.
	events := func() map[string]map[string]any {
		all := make(map[string]map[string]any)
		for _, e := range c.Log() {
			if name, _ := e.Fields["name"].(string); e.Logger == "events" && e.Msg == "event" && strings.HasPrefix(name, "usher.") {
				data, _ := e.Fields["data"].(map[string]any)
				all[name] = data
				if e.Fields["origin"] != "usher" {
					t.Errorf("%s comes from %v", name, e.Fields["origin"])
				}
			}
		}
		return all
	}
	// An operator's word takes effect at once: the target follows the state.
	harness.Eventually(t, soon, func() bool {
		all := events()
		return all["usher.asleep"] != nil && all["usher.scaled"]["to"] == 0.0
	}, "the last events")
	all := events()
	for name, want := range map[string]map[string]any{
		"usher.waking": {"service": "web", "from": "asleep"},
		"usher.ready":  {"service": "web", "from": "waking"},
		"usher.asleep": {"service": "web", "from": "awake"},
		"usher.scaled": {"service": "web", "from": 1.0, "to": 0.0},
	} {
		for key, value := range want {
			if all[name][key] != value {
				t.Errorf("%s: %s is %v, want %v", name, key, all[name][key], value)
			}
		}
	}
	if ms, _ := all["usher.ready"]["cold_start_ms"].(float64); ms <= 0 {
		t.Errorf("usher.ready has the data %v, want the time of the cold start", all["usher.ready"])
	}
}

func TestCaddysEventsTellWhyAServiceFails(t *testing.T) {
	c := newCaddy(t)
	cfg := harness.Config{Debug: true, Site: harness.Usher("web", c.Command("", "/bin/sh", "-c", "exit 3"), "instances 0 1")}
	c.Start(cfg)
	wantRefusal(t, c.Get("/"), "start_failed")
	harness.Eventually(t, soon, func() bool {
		for _, e := range c.Log() {
			if e.Fields["name"] == "usher.failing" && e.Logger == "events" {
				data, _ := e.Fields["data"].(map[string]any)
				return data["reason"] == "exit" && data["error"] == "exit status 3"
			}
		}
		return false
	}, "the event with its reason")
}
