//go:build linux

package kubernetes

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// TestCaddyKilled kills Caddy while pods run: the next one takes them over as
// they are.
func TestCaddyKilled(t *testing.T) {
	s := newSpace(t)
	s.create(workload{})
	site := s.site("deployment/web", "instances 0 3", "concurrency 1", "idle_timeout 3s", fast)
	s.Start(site)
	_, pending := s.holdThree()
	before := names(s.pods.live())
	s.Kill()
	for _, p := range pending {
		p.Wait(t, soon)
	}
	orders := count(cluster.Calls(s.name), "patch", "deployments/scale")
	start := time.Now()
	s.Start(site)
	serving := time.Since(start)
	res := s.Send(harness.Request{Path: "/"}).Wait(t, soon)
	wantOK(t, res)
	if !slices.Contains(before, pod(res)) {
		t.Errorf("%q answers, which is none of %v", pod(res), before)
	}
	for _, l := range s.pods.all() {
		if !slices.Contains(before, l.Metadata.Name) {
			t.Errorf("%s was made after Caddy was killed", l.Metadata.Name)
		}
		if l.Restarts() != 0 {
			t.Errorf("%s was restarted", l.Metadata.Name)
		}
	}
	// Adopted means managed: what is idle goes.
	s.noPods()
	figure(t, "Caddy killed with 3 pods: serving after %s ms, first request then took %s ms, on a pod of before; %d orders until all slept",
		ms(serving), ms(res.Took), count(cluster.Calls(s.name), "patch", "deployments/scale")-orders)
}

// TestReloadUnderLoad reloads while requests run, stay inside and wait.
func TestReloadUnderLoad(t *testing.T) {
	s := newSpace(t)
	s.create(workload{})
	site := func(idle string) harness.Config {
		return s.site("deployment/web", "instances 0 1", "concurrency 20", "idle_timeout "+idle, "scale queue")
	}
	s.Start(site("60s"))
	cold := s.Send(harness.Request{Path: "/"})
	harness.Eventually(t, soon, func() bool { return s.Service("web").Waiting == 1 || cold.Done() }, "a request waits")
	s.MustReload(site("61s"))
	wantOK(t, cold.Wait(t, soon))
	home := names(s.pods.live())
	held := s.Send(harness.Request{Path: s.hold("gate")})
	load := s.Load(8, "/sleep?d=5ms")
	harness.Eventually(t, soon, func() bool { return load.Len() > 50 }, "the load runs")
	orders := count(cluster.Calls(s.name), "patch", "deployments/scale")
	const reloads = 5
	took := make([]time.Duration, 0, reloads)
	for i := range reloads {
		start := time.Now()
		s.MustReload(site([]string{"62s", "63s"}[i%2]))
		took = append(took, time.Since(start))
		before := load.Len()
		harness.Eventually(t, soon, func() bool { return load.Len() > before+50 }, "the load goes on")
	}
	s.Open("gate")
	wantOK(t, held.Wait(t, soon))
	all := load.Stop()
	if lost := s.Lost(all); len(lost) > 0 {
		t.Errorf("%d of %d requests were lost: %s", len(lost), len(all), describe(lost))
	}
	if got := names(s.pods.all()); !slices.Equal(got, home) {
		t.Errorf("pods %v, before the reloads %v", got, home)
	}
	if n := count(cluster.Calls(s.name), "patch", "deployments/scale"); n != orders {
		t.Errorf("%d orders were given during reloads", n-orders)
	}
	if n := watches(s.name); n != 1 {
		t.Errorf("%d watches of pods were begun, want 1 for all configurations", n)
	}
	figure(t, "%d reloads under load, %s ms each: %d requests, %d lost, %d watch of pods",
		reloads, ms(took...), len(all), len(s.Lost(all)), watches(s.name))
}
