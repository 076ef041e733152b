//go:build linux

package kubernetes

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// TestCluster shows that the cluster is what the other tests take it for: it
// runs a pod to which a plain Caddy can forward.
func TestCluster(t *testing.T) {
	s := newSpace(t)
	s.create(workload{})
	start := time.Now()
	s.kubectl("scale", "deployment/web", "--replicas", "1")
	var life podLife
	harness.Eventually(t, soon, func() bool {
		for _, l := range s.pods.live() {
			life = l
		}
		return life.Ready()
	}, "the pod is ready")
	figure(t, "scale to pod IP %s ms, to Ready %s ms", ms(life.ipAt.Sub(start)), ms(life.readyAt.Sub(start)))

	s.Start(harness.Config{NoUsher: true, Site: fmt.Sprintf("reverse_proxy %s:8080", life.Status.PodIP)})
	res := s.Get("/")
	wantOK(t, res)
	if pod(res) != life.Metadata.Name {
		t.Errorf("%q answers, want %q", pod(res), life.Metadata.Name)
	}
	if n := s.Journal().Starts(); n != 1 {
		t.Errorf("the journal has %d starts, want 1", n)
	}
	s.kubectl("scale", "deployment/web", "--replicas", "0")
	s.noPods()
}
