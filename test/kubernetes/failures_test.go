//go:build linux

package kubernetes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// noPatch are rights that lack the one to scale.
var noPatch = strings.ReplaceAll(rights, "scale], verbs: [get, patch]", "scale], verbs: [get]")

// A hopeless workload cannot start, and waiting clients get the reason.
type hopeless struct {
	name   string
	pods   workload
	ready  string   // start_timeout, where the test waits for it
	space  string   // which namespace
	none   bool     // there is no such workload
	reason string   // of caddy_usher_start_failures_total
	words  []string // one of which the answer has
}

var hopelessOnes = []hopeless{
	{name: "image", pods: workload{image: "localhost/nothing:v1"}, reason: "image", words: []string{"ImagePullBackOff", "ErrImagePull"}},
	{name: "image-name", pods: workload{image: "NOT A NAME"}, reason: "image", words: []string{"InvalidImageName"}},
	{name: "crash", pods: workload{args: []string{"-exit-code", "7"}}, reason: "crash_loop", words: []string{"CrashLoopBackOff", "exit code 7", "exit status 7"}},
	{name: "config", pods: workload{more: "envFrom: [{secretRef: {name: nothing}}]"}, reason: "exec", words: []string{"CreateContainerConfigError", `secret "nothing" not found`}},
	{name: "huge", pods: workload{more: "resources: {requests: {cpu: 1000}}"}, ready: "4s", reason: "unschedulable", words: []string{"Insufficient cpu"}},
	{name: "quota", pods: workload{}, space: "quota", reason: "quota", words: []string{"exceeded quota"}},
	{name: "rights", pods: workload{}, space: "rights", reason: "forbidden", words: []string{"patch", "forbidden"}},
	{name: "nothing", none: true, reason: "not_found", words: []string{"not found"}},
}

// TestStartFailures lets clients wait for what cannot start.
func TestStartFailures(t *testing.T) {
	s := newSpace(t)
	namespace := map[string]string{
		"":       s.name,
		"quota":  makeNamespace(t, rights),
		"rights": makeNamespace(t, noPatch),
	}
	apply(t, fmt.Sprintf("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: none, namespace: %s}\nspec: {hard: {pods: 0}}\n", namespace["quota"]))
	harness.Eventually(t, soon, func() bool {
		var quota struct {
			Status struct{ Hard map[string]string }
		}
		err := cluster.Get("/api/v1/namespaces/"+namespace["quota"]+"/resourcequotas/none", &quota)
		return err == nil && quota.Status.Hard["pods"] == "0"
	}, "the quota holds")

	var site strings.Builder
	for _, h := range hopelessOnes {
		if !h.none {
			h.pods.name = h.name
			s.createIn(namespace[h.space], h.pods)
		}
		fmt.Fprintf(&site, "handle /%s {\n%s\n}\n", h.name,
			usherIn(namespace[h.space], h.name, "deployment/"+h.name, "start_timeout "+cmp.Or(h.ready, "60s"), "wait_timeout 90s", "error_detail full"))
	}
	s.Start(harness.Config{Global: "metrics", Site: site.String()})

	pending := make(map[string]*harness.Pending)
	client := s.HTTP1()
	for _, h := range hopelessOnes {
		pending[h.name] = s.Send(harness.Request{
			Path: "/" + h.name, Client: client,
			Header: http.Header{"Accept": {"application/problem+json"}},
		})
	}
	for _, h := range hopelessOnes {
		t.Run(h.name, func(t *testing.T) {
			res := pending[h.name].Wait(t, harness.Slow(100*time.Second))
			var problem struct{ Code, Detail string }
			if err := json.Unmarshal([]byte(res.Body), &problem); err != nil {
				t.Fatalf("%v: %d %s", err, res.Status, res.Body)
			}
			figure(t, "after %s ms: %s: %s", ms(res.Took), problem.Code, problem.Detail)
			if res.Status != http.StatusServiceUnavailable || problem.Code != "start_failed" {
				t.Errorf("status %d, code %q, want 503 with start_failed", res.Status, problem.Code)
			}
			if !anyOf(problem.Detail, h.words) {
				t.Errorf("the detail %q has none of %q", problem.Detail, h.words)
			}
			series := fmt.Sprintf(`caddy_usher_start_failures_total{reason="%s",service="%s"}`, h.reason, h.name)
			if got := s.Metrics("caddy_usher_start_failures_total"); got[series] == "" {
				t.Errorf("no %s among %v", series, got)
			}
			if got := s.Service(h.name); got.State != "failing" || got.LastError == nil {
				t.Errorf("the service is %s, its last error %v", got.State, got.LastError)
			}
		})
	}
}

func anyOf(text string, words []string) bool {
	for _, word := range words {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}

// TestHealedWorkload wakes what could not start once its fault is mended.
func TestHealedWorkload(t *testing.T) {
	s := newSpace(t)
	s.create(workload{args: []string{"-exit-while", s.Path("broken")}})
	s.Open("broken")
	s.Start(s.site("deployment/web"))
	res := s.Send(harness.Request{Path: "/"}).Wait(t, harness.Slow(90*time.Second))
	if res.UsherError() != "start_failed" {
		t.Fatalf("status %d (%s), want start_failed", res.Status, res.UsherError())
	}
	s.Shut("broken")
	start := time.Now()
	harness.Eventually(t, harness.Slow(2*time.Minute), func() bool { return s.Get("/").Status == http.StatusOK }, "the service is awake")
	figure(t, "failing after %s ms; awake %s ms after the mending", ms(res.Took), ms(time.Since(start)))
}
