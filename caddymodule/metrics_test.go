package caddymodule

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// series are all series of a service as a registry of Caddy's kind gathers
// them: "name{labels} value", without the label service.
func series(t *testing.T, service string) []string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := hub.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, fam := range families {
		for _, m := range fam.GetMetric() {
			var labels []string
			mine := false
			for _, l := range m.GetLabel() {
				if l.GetName() == "service" {
					mine = l.GetValue() == service
				} else {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
			}
			if !mine {
				continue
			}
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				v = float64(h.GetSampleCount())
			}
			all = append(all, fmt.Sprintf("%s{%s} %v", fam.GetName(), strings.Join(labels, ","), v))
		}
	}
	slices.Sort(all)
	return all
}

// counted returns how often an outcome was counted.
func counted(t *testing.T, service, outcome string) string {
	t.Helper()
	for _, s := range series(t, service) {
		if v, ok := strings.CutPrefix(s, "caddy_usher_reservations_total{outcome="+outcome+"} "); ok {
			return v
		}
	}
	return ""
}

func TestMetricsHaveTheNamesAndLabelsOfTheContract(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher("instances 0 2", "concurrency 5")))
	if r := c.get("/"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	f.ready(1)
	eventually(t, "the cold start", func() bool { return serving(t, f.name).Loop.Status().ColdStarts == 1 })
	want := []string{
		"caddy_usher_avoidable_cold_starts_total{} 0",
		"caddy_usher_cold_start_seconds{} 1",
		"caddy_usher_decisions_total{direction=up} 1",
		"caddy_usher_instances{state=draining} 0",
		"caddy_usher_instances{state=ejected} 0",
		"caddy_usher_instances{state=ready} 1",
		"caddy_usher_instances{state=starting} 0",
		"caddy_usher_max_waiting{} 1000",
		"caddy_usher_platform_up{} 1",
		"caddy_usher_predicted{} 0",
		"caddy_usher_reservations_total{outcome=granted} 1",
		"caddy_usher_slots{state=in_use} 0",
		"caddy_usher_slots{state=total} 5",
		"caddy_usher_state{state=awake} 1",
		"caddy_usher_target{} 1",
		"caddy_usher_visitors{} 0",
		"caddy_usher_wait_seconds{outcome=granted} 1",
		"caddy_usher_waiting{} 0",
	}
	eventually(t, "the end of the request", func() bool { return serving(t, f.name).Reserver.Stats().InUse == 0 })
	got := slices.DeleteFunc(series(t, f.name), func(s string) bool {
		return strings.HasPrefix(s, "caddy_usher_idle_seconds_total{} ") // it grows while the test looks
	})
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	c.end()
	eventually(t, "the end of all series", func() bool { return len(series(t, f.name)) == 0 })
}

func TestFailedStartsAreCountedByReason(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site(f.usher()))
	c.get("/")
	got := strings.Join(series(t, f.name), "\n")
	for _, want := range []string{"caddy_usher_start_failures_total{reason=exec} 1", "caddy_usher_reservations_total{outcome=start_failed} 1"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}
