package caddymodule

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestNumbersBeyondTheirBoundsAreRefusedInJSON(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]string{
		`"instances":{"min":10,"max":1000000000}`:                  "the maximum is 1000000000, but can be at most 100000",
		`"concurrency":1000000000000000000`:                        "'unlimited' is without a limit",
		`"idle_timeout":1`:                                         "idle_timeout is 1ns, but must be at least 1ms",
		`"idle_timeout":"1000000h"`:                                "at most 87600h",
		`"start_timeout":1`:                                        "start_timeout is 1ns, but must be at least 1ms",
		`"start_timeout":"1000000h"`:                               "at most 87600h",
		`"drain_timeout":9223372036854775807`:                      "drain_timeout is 2562047h47m16.854775807s, but can be at most 87600h",
		`"stop_timeout":"1000000h"`:                                "at most 87600h",
		`"max_waiting":1000000000`:                                 "max_waiting is 1000000000, but must be between 0 and 1000000",
		`"ready":{"interval":1}`:                                   "interval is 1ns, but must be at least 1ms",
		`"ready":{"timeout":"1000000h"}`:                           "at most 87600h",
		`"scale":{"policy":"queue","utilization":1e-30}`:           "utilization must be between 0.01 and 1",
		`"scale":{"policy":"queue","down_window":1}`:               "down_window is 1ns, but must be at least 1ms",
		`"scale":{"policy":"queue","down_window":"1000000h"}`:      "at most 87600h",
		`"concurrency":99999999999999999999999999999999`:           "'unlimited' is without a limit",
		`"instances":{"max":99999999999999999999999999999999}`:     "cannot unmarshal number",
		`"instances":{"min":0,"max":5},"max_waiting":-99999999999`: "max_waiting cannot be negative",
	} {
		def := `{"backend":{"type":"test","fleet":"a"},` + options + `}`
		_, err := tryProvision(t, jsonApps(`{"services":{"web":`+def+`}}`, ""))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the message does not say %q: %v", options, want, err)
		}
	}
	for name, x := range map[string]struct{ app, handler, want string }{
		"start_limit":  {`{"start_limit":1000000}`, "", "start_limit is 1000000, but can be at most 1000"},
		"max_waiting":  {`{"max_waiting":1000000000}`, "", "must be between 0 and 1000000"},
		"wait_timeout": {"", `{"handler":"usher","service":"web","wait_timeout":"1000000h"}`, "at most 87600h"},
		"wait_tiny":    {"", `{"handler":"usher","service":"web","wait_timeout":1}`, "at least 1ms"},
		"after":        {"", `{"handler":"usher","service":"web","waiting_page":{"after":1}}`, "at least 1ms"},
		"refresh":      {"", `{"handler":"usher","service":"web","waiting_page":{"refresh":"1000h"}}`, "refresh is 1000h0m0s, but can be at most 1h"},
		"max_streams":  {`{"services":{"web":{"backend":{"type":"test"}}}}`, `{"handler":"usher_status","max_streams":1000000000}`, "at most 100000"},
	} {
		if _, err := tryProvision(t, jsonApps(x.app, x.handler)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: the message does not say %q: %v", name, x.want, err)
		}
	}
}

// FuzzNumbers gives a service any numbers, as JSON. They are refused, or they
// are within the bounds of a control loop.
func FuzzNumbers(f *testing.F) {
	for _, seed := range []string{
		`{}`,
		`{"instances":{"min":0,"max":100000},"concurrency":1000000,"max_waiting":1000000}`,
		`{"instances":{"min":10,"max":20},"concurrency":1000000000000000000}`,
		`{"scale":{"policy":"queue","utilization":1e-30}}`,
		`{"scale":{"policy":"queue","utilization":0.01,"down_window":"1ms"},"concurrency":1}`,
		`{"idle_timeout":"1ms","start_timeout":"87600h","drain_timeout":"87600h","stop_timeout":"87600h"}`,
		`{"ready":{"check":"tcp","interval":"87600h","timeout":"1ms"}}`,
		`{"idle_timeout":1e300}`, `{"drain_timeout":-0.0}`, `{"stop_timeout":"9e9h"}`, `{"max_waiting":0}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, options string) {
		var o map[string]json.RawMessage
		if json.Unmarshal([]byte(options), &o) != nil || o == nil {
			return
		}
		o["backend"] = json.RawMessage(`{"type":"test","fleet":"numbers"}`)
		def, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			logBuffers.Delete(logName(t))
			logNames.Delete(t)
		})
		c, err := tryProvision(t, jsonApps(`{"services":{"numbers":`+string(def)+`}}`, ""))
		if err != nil {
			return
		}
		s := c.app.generation.Definitions["numbers"].Settings
		if s.Min < 0 || s.Max < 1 || s.Min > s.Max || s.Max > scaler.MaxInstances || s.Concurrency < 0 || s.Concurrency > scaler.MaxConcurrency {
			t.Errorf("%s: accepted: %+v", def, s)
		}
		for _, d := range []time.Duration{
			s.IdleTimeout, s.StartTimeout, s.DrainTimeout, s.StopTimeout, s.Check.Interval, s.Check.Timeout, s.Policy.Window(),
		} {
			if d != 0 && (d < scaler.MinDuration || d > scaler.MaxDuration) {
				t.Errorf("%s: accepted: %v", def, d)
			}
		}
	})
}

func TestOverlapInJSONIsChecked(t *testing.T) {
	t.Parallel()
	_, err := tryProvision(t, jsonApps(`{"services":{"web":{"backend":{"type":"test","fleet":"a"},"overlap":"sometimes"}}}`, ""))
	if err == nil || !strings.Contains(err.Error(), "overlap 'sometimes' is unknown: use on or off") {
		t.Errorf("%v", err)
	}
	c, err := tryProvision(t, jsonApps(`{"services":{"web":{"backend":{"type":"test","fleet":"a"},"overlap":"on"}}}`, ""))
	if err != nil || c.app.generation.Definitions["web"].Settings.Overlap != control.OverlapOn {
		t.Errorf("%v", err)
	}
}
