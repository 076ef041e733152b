//go:build linux

package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// fast makes a service follow its demand down without the pauses that keep
// real ones calm.
const fast = "scale queue {\n\tdown_window 1s\n}"

// holdThree lets three requests stay inside, on three pods, and returns them
// by the pod that each is in.
func (s *space) holdThree() (byPod map[string]int, pending []*harness.Pending) {
	s.t.Helper()
	for i := range 3 {
		pending = append(pending, s.Send(harness.Request{
			Path:   s.hold(fmt.Sprint("gate", i)),
			Header: map[string][]string{"X-Seq": {strconv.Itoa(i)}},
		}))
		s.inside(i + 1)
	}
	byPod = make(map[string]int)
	for _, e := range s.Journal().Of("begin") {
		byPod[e.Instance] = slices.Index([]string{"0", "1", "2"}, e.Seq)
	}
	if len(byPod) != 3 {
		s.t.Fatalf("the requests are on %d pods, want 3", len(byPod))
	}
	return byPod, pending
}

// gone waits until n pods are going in which a request was, and returns their
// names. Others may go as well: replacements that the controller has made
// between two orders, and that have served nothing.
func (s *space) gone(n int) []string {
	s.t.Helper()
	var going []string
	harness.Eventually(s.t, soon, func() bool {
		served := make(map[string]bool)
		for _, e := range s.Journal().Of("begin") {
			served[e.Instance] = true
		}
		going = going[:0]
		for _, l := range s.pods.all() {
			if !l.goingAt.IsZero() && served[l.Metadata.Name] {
				going = append(going, l.Metadata.Name)
			}
		}
		return len(going) >= n
	}, "%d pods are going", n)
	slices.Sort(going)
	return going
}

// staying returns the pods that are not being deleted.
func (w *podWatch) staying() []podLife {
	return slices.DeleteFunc(w.all(), func(l podLife) bool { return !l.goingAt.IsZero() })
}

// TestScaleDownTakesTheIdlePod goes 0 -> 3 -> 0 with a request in every pod:
// the pod whose request has ended goes, and no other.
func TestScaleDownTakesTheIdlePod(t *testing.T) {
	for _, ready := range []string{"tcp", "platform"} {
		t.Run(ready, func(t *testing.T) {
			s := newSpace(t)
			s.create(workload{})
			s.Start(s.site("deployment/web", "instances 0 3", "concurrency 1", "idle_timeout 2s", "ready "+ready, fast))
			start := time.Now()
			_, pending := s.holdThree()
			up := time.Since(start)

			ended, order := make([]time.Duration, 0, 3), make([]string, 0, 3)
			// The second first: neither the oldest nor the newest.
			for n, i := range []int{1, 2, 0} {
				s.Open(fmt.Sprint("gate", i))
				freed := time.Now()
				res := pending[i].Wait(t, soon)
				wantOK(t, res)
				order = append(order, pod(res))
				want := slices.Sorted(slices.Values(order))
				going := s.gone(n + 1)
				ended = append(ended, time.Since(freed))
				if !slices.Equal(going, want) {
					t.Fatalf("going: %v; requests have ended in %v", going, want)
				}
			}
			s.noPods()
			figure(t, "0 -> 3 in %s ms; 3 -> 2 -> 1 -> 0, each from the end of its request to the pod's deletion %s ms; %d pods in all",
				ms(up), ms(ended...), len(s.pods.all()))
		})
	}
}

// TestScaleDownUnderLoad follows a demand that comes and goes; no request may
// notice.
func TestScaleDownUnderLoad(t *testing.T) {
	s := newSpace(t)
	s.create(workload{})
	s.Start(s.site("deployment/web", "instances 0 3", "concurrency 4", "idle_timeout 2s", fast))
	var all []harness.Response
	start := time.Now()
	for range 2 {
		many := s.Load(12, "/sleep?d=20ms")
		harness.Eventually(t, soon, func() bool { return s.Service("web").Instances.Ready == 3 }, "three instances are ready")
		few := s.Load(2, "/sleep?d=20ms")
		all = append(all, many.Stop()...)
		harness.Eventually(t, soon, func() bool { return len(s.pods.live()) == 1 }, "one pod is left")
		all = append(all, few.Stop()...)
	}
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d failed: %s", len(bad), len(all), describe(bad))
	}
	figure(t, "0 -> 3 -> 1 -> 3 -> 1 under load in %s: %d requests, %d failed, %d pods in all",
		time.Since(start).Round(100*time.Millisecond), len(all), len(harness.Failed(all)), len(s.pods.all()))
}

// TestStatefulSet stops from the highest ordinal, as the controller does, and
// lets what is inside there end.
func TestStatefulSet(t *testing.T) {
	s := newSpace(t)
	s.create(workload{kind: "StatefulSet", name: "db"})
	s.Start(s.site("statefulset/db", "instances 0 3", "concurrency 1", "idle_timeout 2s", fast))
	start := time.Now()
	byPod, pending := s.holdThree()
	up := time.Since(start)
	for _, name := range []string{"db-0", "db-1", "db-2"} {
		if _, ok := byPod[name]; !ok {
			t.Fatalf("no request on %s: %v", name, byPod)
		}
	}
	// db-0 has nothing to do now, and db-2 is the one that has to go.
	free := byPod["db-0"]
	s.Open(fmt.Sprint("gate", free))
	wantOK(t, pending[free].Wait(t, soon))
	harness.Eventually(t, soon, func() bool { return s.Service("web").Instances.Draining == 1 }, "one instance drains")
	for _, l := range s.pods.live() {
		if l.Going() {
			t.Errorf("%s goes while a request is inside", l.Metadata.Name)
		}
	}
	last := byPod["db-2"]
	s.Open(fmt.Sprint("gate", last))
	wantOK(t, pending[last].Wait(t, soon))
	if going := s.gone(1); !slices.Equal(going, []string{"db-2"}) {
		t.Errorf("going: %v, want db-2", going)
	}
	s.Open(fmt.Sprint("gate", byPod["db-1"]))
	wantOK(t, pending[byPod["db-1"]].Wait(t, soon))
	s.noPods()
	figure(t, "0 -> 3 in %s ms, one after the other; db-2 drained and went first", ms(up))
}

// TestScaledByHand lets another client write the number of replicas.
func TestScaledByHand(t *testing.T) {
	s := newSpace(t)
	s.create(workload{})
	// A request that a deleted pod may have seen is only resent if the
	// configuration allows it.
	s.Start(s.site("deployment/web", "instances 0 3", "concurrency 100", "idle_timeout 2s", "lb_retries 2", fast))
	held := s.Send(harness.Request{Path: s.hold("gate")})
	s.inside(1)
	home := s.pods.live()[0].Metadata.Name

	start := time.Now()
	s.kubectl("scale", "deployment/web", "--replicas", "3")
	harness.Eventually(t, soon, func() bool { return len(s.pods.all()) >= 3 }, "the controller follows the hand")
	harness.Eventually(t, soon, func() bool { return len(s.pods.staying()) == 1 }, "Usher goes back to what it wants")
	back := time.Since(start)
	if live := names(s.pods.staying()); !slices.Equal(live, []string{home}) {
		t.Errorf("left: %v, want %s, which is busy", live, home)
	}
	s.Open("gate")
	wantOK(t, held.Wait(t, soon))

	load := s.Load(4, "/sleep?d=20ms")
	harness.Eventually(t, soon, func() bool { return load.Len() > 20 }, "the load runs")
	start = time.Now()
	s.kubectl("scale", "deployment/web", "--replicas", "0")
	harness.Eventually(t, soon, func() bool { return !s.pods.of(home).goingAt.IsZero() }, "the pod is taken")
	harness.Eventually(t, soon, func() bool {
		live := s.pods.staying()
		return len(live) == 1 && live[0].Metadata.Name != home && s.Service("web").Instances.Ready == 1
	}, "another pod serves")
	again := time.Since(start)
	before := load.Len()
	harness.Eventually(t, soon, func() bool { return load.Len() > before+20 }, "the load runs again")
	all := load.Stop()
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d failed: %s", len(bad), len(all), describe(bad))
	}
	figure(t, "1 -> 3 by hand, back at 1 after %s ms; 1 -> 0 by hand under load, served again after %s ms, %d of %d requests failed",
		ms(back), ms(again), len(harness.Failed(all)), len(all))
}
