package monitoring

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// A metric of a real Prometheus scales a service, and when the Prometheus says
// nothing, or two things, the instances stay.
func TestAThermostatFollowsARealPrometheus(t *testing.T) {
	program(t, "prometheus") // before anything is started
	c := harness.New(t)
	thermostat := func(query string) harness.Config {
		return harness.Config{Site: harness.Usher("hot", c.Backend(), "instances 0 3", `scale thermostat {
	metric prometheus {
		url http://`+c.SpareAddr+`
		query "`+query+`"
		interval 200ms
	}
	target 10
	step 1
	cooldown 500ms
}`)}
	}
	c.Start(thermostat("vector(30)"))
	startPrometheus(t, c, "groups: []")
	harness.Eventually(t, soon, func() bool { return c.Service("hot").Instances.Ready == 3 }, "the metric of 30 starts three")
	for query, why := range map[string]string{
		"vector(1) or label_replace(vector(2), `a`, `b`, ``, ``)": "2 series",
		"vector(NaN)":       "NaN",
		"absent(vector(1))": "0 series",
		"rate(nothing[1m]":  "the query fails",
	} {
		c.MustReload(thermostat(query))
		harness.Eventually(t, soon, func() bool {
			out, _ := c.Run("usher", "explain", "hot", "--address", c.AdminAddr)
			return strings.Contains(out, why)
		}, "explain tells of "+why)
		harness.Throughout(t, time.Second, func() bool { return c.Service("hot").Target == 3 }, "three stay")
	}
}
