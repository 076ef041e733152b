package docs

import (
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/test/harness"
)

// The reference has every name that a running Usher shows: the fields of the
// admin API, the metrics and the events; and it has no metric that there is not.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	c := harness.New(t)
	c.Start(harness.Config{
		Global: "metrics",
		Site: "metrics /metrics\n" +
			harness.Usher("/broken broken", c.Command("", "sh", "-c", "echo it fails; exit 7"), "start_attempts 1") + "\n" +
			harness.Usher("/slow slow", c.Backend("-never-listen"), "start_timeout 5m", "wait_timeout 50ms") + "\n" +
			harness.Usher("web", c.Backend(), "idle_timeout 200ms", "scale queue", "affinity key {client_ip}") + "\n" +
			harness.Usher("/stored* stored", c.Backend(), "async {\nwhen always\ngroup {client_ip}\nattempts 2\n}") + "\n" +
			harness.Usher("/split* shop", "split web 1 slow 1") + "\n" +
			harness.Usher("/full* full", c.Backend("-never-listen"), "async {\nwhen always\nmax_tasks 1\n}"),
	})
	for _, path := range []string{"/", "/broken", "/slow"} {
		if r := c.Get(path); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	ask := func(method, path string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.AdminAddr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return askAll(t, req)
	}
	harness.Eventually(t, harness.Slow(15*time.Second), func() bool {
		return strings.Contains(ask("GET", "/usher/services/web"), `"state":"asleep"`)
	}, "web is asleep again")
	ask("POST", "/usher/services/web/suspend")
	if r := c.Do(harness.Request{Method: "POST", Path: "/stored"}); r.Status != http.StatusAccepted {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	for _, want := range []int{http.StatusAccepted, http.StatusServiceUnavailable} {
		if r := c.Do(harness.Request{Method: "POST", Path: "/full"}); r.Status != want {
			t.Fatalf("status %d, want %d: %s", r.Status, want, r.Body)
		}
	}
	harness.Eventually(t, harness.Slow(15*time.Second), func() bool {
		// It is counted a moment after it is done.
		return strings.Contains(ask("GET", "/usher/tasks"), `"state":"done"`) && strings.Contains(c.Get("/metrics").Body, "# TYPE caddy_usher_task_attempts_total ")
	}, "the stored request is executed")

	page := read(t, "docs/reference.md")
	fields := 0
	for _, path := range []string{
		"/usher/services", "/usher/services/web", "/usher/services/web/decisions", "/usher/services/broken", "/usher/services/broken/logs",
		"/usher/services/slow", "/usher/services/broken/decisions", "/usher/tasks", "/usher/splits",
	} {
		var v any
		answer := ask("GET", path)
		if err := json.Unmarshal([]byte(answer), &v); err != nil {
			t.Fatalf("%s: %v: %s", path, err, answer)
		}
		for _, field := range fieldsOf(v) {
			fields++
			if !strings.Contains(page, "`"+field+"`") {
				t.Errorf("%s has the field %s, which the reference does not have", path, field)
			}
		}
	}
	if fields < 60 {
		t.Errorf("only %d fields", fields)
	}

	scraped := c.Get("/metrics").Body
	shown := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(caddy_usher_[a-z_]+)").FindAllStringSubmatch(page, -1) {
		shown[m[1]] = true
		if !inClusters[m[1]] && !strings.Contains(scraped, "# TYPE "+m[1]+" ") {
			t.Errorf("the reference has the metric %s, which there is not", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (caddy_usher_\S+) `).FindAllStringSubmatch(scraped, -1) {
		if !shown[m[1]] {
			t.Errorf("there is the metric %s, which the reference does not have", m[1])
		}
	}
}

// A running Usher shows some fields only in a cluster, or in trouble.
func TestReferenceHasTheFieldsThatAreRarelyShown(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/reference.md")
	for _, of := range []reflect.Type{reflect.TypeFor[hub.ClusterStatus](), reflect.TypeFor[hub.ServiceDetails]()} {
		for _, field := range jsonNames(of) {
			if !strings.Contains(page, "`"+field+"`") {
				t.Errorf("%s has the field %s, which the reference does not have", of, field)
			}
		}
	}
}

// jsonNames returns the names that a struct and those inside have in JSON.
func jsonNames(of reflect.Type) (all []string) {
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return nil
	}
	for f := range of.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" {
			all = append(all, name)
		}
		all = append(all, jsonNames(f.Type)...)
	}
	return all
}

// inClusters are the metrics that only a Caddy in a cluster has: test/cluster looks
// for them.
var inClusters = map[string]bool{"caddy_usher_cluster_members": true, "caddy_usher_cluster_view": true, "caddy_usher_cluster_isolated": true, "caddy_usher_shares": true, "caddy_usher_handover_seconds": true}

func askAll(t *testing.T, req *http.Request) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: status %d: %s", req.Method, req.URL, res.StatusCode, body)
	}
	return string(body)
}

// fieldsOf returns the names of all fields of v, but those of configurations.
func fieldsOf(v any) []string {
	var all []string
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			all = append(all, name)
			if name != "config" {
				all = append(all, fieldsOf(inner)...)
			}
		}
	case []any:
		for _, inner := range v {
			all = append(all, fieldsOf(inner)...)
		}
	}
	return all
}
