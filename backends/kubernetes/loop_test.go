package kubernetes

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
	"github.com/caddy-usher/usher/scaler/policies"
)

// service is a whole service over a workload: the backend, its control loop
// and its slots.
type service struct {
	*control.Loop
	t       *testing.T
	slots   *reserver.Service
	backend *Backend
}

// silent observes nothing.
type silent struct{}

func (silent) Observe(control.Event) {}

// serve starts a service whose instances are ready by the platform's word,
// with one slot each.
func serve(t *testing.T, s *apiServer, resource string, change func(*control.Settings)) *service {
	t.Helper()
	settings := control.Settings{
		Max: 3, Concurrency: 1, IdleTimeout: time.Hour, StartTimeout: time.Minute, DrainTimeout: time.Second,
		Check: control.Check{Kind: control.CheckPlatform}, Policy: policies.Queue{DownWindow: 10 * time.Millisecond},
	}
	if change != nil {
		change(&settings)
	}
	b := &Backend{Resource: resource, Kubeconfig: s.kubeconfig()}
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	x := &service{t: t, backend: b}
	x.Loop = control.NewLoop(scaler.Env{Service: "web", Logger: quiet, Host: &scaler.Host{DataDir: "/data"}}, &settings, control.NewBudget(8), new(control.Timers), silent{})
	x.slots = reserver.New(reserver.Options{MaxWaiting: 100}, nil, x.Hooks())
	x.Attach(x.slots)
	if err := x.SetBackend(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := x.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return x
}

// request asks for a slot, and returns when it has one or a refusal.
func (x *service) request() (*reserver.Reservation, error) {
	x.t.Helper()
	r := new(reserver.Reservation)
	if ok, err := x.slots.Reserve(r, reserver.Ask{}); ok || err != nil {
		return r, err
	}
	select {
	case err := <-r.Granted():
		return r, err
	case <-time.After(patience):
		x.t.Fatalf("no answer; %+v", x.Status())
		return nil, nil
	}
}

// inside is a request that gets a slot.
func (x *service) inside() *reserver.Reservation {
	x.t.Helper()
	r, err := x.request()
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

// refused waits until a request is refused, and returns why.
func (x *service) refused() *control.Refusal {
	x.t.Helper()
	_, err := x.request()
	why, ok := errors.AsType[*control.Refusal](err)
	if !ok {
		x.t.Fatalf("not refused: %v", err)
	}
	return why
}

func TestAServiceGoesUpAndDownWithItsRequestsAndCutsNone(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	x := serve(t, s, "deployment/web", nil)
	a, b, c := x.inside(), x.inside(), x.inside()
	if n := len(s.livePods()); n != 3 {
		t.Fatalf("%d pods", n)
	}
	kept, _, _ := strings.Cut(b.Instance().ID, ".")
	a.Release(reserver.Answered)
	c.Release(reserver.Answered)
	eventually(t, "one pod", func() bool { return slices.Equal(s.livePods(), []string{kept}) })
	if st := b.Instance().Stats(); st.InUse != 1 || st.Cordoned {
		t.Fatalf("%+v", st)
	}
	b.Release(reserver.Answered)
	x.Sleep()
	eventually(t, "sleep", func() bool { return len(s.livePods()) == 0 && x.Status().State == control.Asleep })
}

func TestAStatefulSetKeepsItsLowestOrdinalsWhateverTheLoad(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("StatefulSet", "db", 0)
	x := serve(t, s, "statefulset/db", nil)
	all := map[string]*reserver.Reservation{}
	for range 3 {
		r := x.inside()
		all[strings.Split(r.Instance().ID, ".")[0]] = r
	}
	// The least loaded is db-0, and db-2 goes, with its request finished.
	all["db-0"].Release(reserver.Answered)
	eventually(t, "that the highest takes nothing new", func() bool { return all["db-2"].Instance().Stats().Cordoned })
	if !slices.Contains(s.livePods(), "db-2") {
		t.Fatal("a pod with a request inside was stopped")
	}
	all["db-2"].Release(reserver.Answered)
	eventually(t, "two pods", func() bool { return slices.Equal(s.livePods(), []string{"db-0", "db-1"}) })
	all["db-1"].Release(reserver.Answered)
}

func TestWhoWaitsLearnsWhyThePodDoesNotStart(t *testing.T) {
	for name, test := range map[string]struct {
		pod    func(object)
		change func(*control.Settings)
		words  string
	}{
		"image": {func(o object) {
			containerIs(object{"restartCount": float64(0), "state": object{"waiting": object{"reason": "ImagePullBackOff"}}})(o)
		}, nil, "ImagePullBackOff"},
		"unschedulable": {func(o object) {
			merge(o, object{"status": object{"conditions": []any{object{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}}}})
		}, func(st *control.Settings) { st.StartTimeout = 30 * time.Millisecond }, "Unschedulable"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.controllers(test.pod)
			s.workload("Deployment", "web", 0)
			x := serve(t, s, "deployment/web", test.change)
			if why := x.refused(); !strings.Contains(why.Short, test.words) {
				t.Fatalf("%+v", why)
			}
		})
	}
}

func TestWhoWaitsInANewNamespaceIsServedOnceItIsComplete(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	s.change("replicasets", "web-1", func(o object) {
		merge(o, object{
			"metadata": object{"annotations": object{"test/quota": "yes"}},
			"status": object{"conditions": []any{object{
				"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
				"message": `pods "web-1-" is forbidden: error looking up service account new/default: serviceaccount "default" not found`,
			}}},
		})
	})
	x := serve(t, s, "deployment/web", nil)
	r := new(reserver.Reservation)
	if ok, err := x.slots.Reserve(r, reserver.Ask{}); ok || err != nil {
		t.Fatal(ok, err)
	}
	eventually(t, "the reason is known", func() bool {
		e := x.Status().LastError
		return e != nil && e.Short == "its service account does not exist"
	})
	s.change("replicasets", "web-1", func(o object) {
		merge(o, object{"metadata": object{"annotations": object{"test/quota": nil}}, "status": object{"conditions": []any{}}})
	})
	select {
	case err := <-r.Granted():
		if err != nil {
			t.Fatal(err)
		}
		r.Release(reserver.Answered)
	case <-time.After(patience):
		t.Fatalf("no answer; %+v", x.Status())
	}
}

func TestWhoWaitsIsToldThatAnotherUsherScales(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	foreign := ownership{By: "another/usher", Time: time.Now()}
	s.change("deployments", "web", func(o object) {
		merge(o, object{"metadata": object{"annotations": object{ownerKey: foreign.String()}}})
	})
	x := serve(t, s, "deployment/web", func(st *control.Settings) { st.IdleTimeout = time.Millisecond })
	r := x.inside() // it serves
	if e := x.Status().LastError; e == nil || e.Short != "another Usher scales it" {
		t.Fatalf("%v", e)
	}
	r.Release(reserver.Answered)
	// It would be idle by now, and must not be stopped by this one.
	x.inside().Release(reserver.Answered)
	s.scaleTo("deployments", "web", 0)
	eventually(t, "the end of the pod", func() bool { return len(x.Instances()) == 0 })
	if why := x.refused(); why.Short != "another Usher scales it" {
		t.Fatalf("%+v", why)
	}
	if n := len(s.made("patch")); n != 0 {
		t.Fatalf("it changed something: %v", s.made("patch"))
	}
}

func TestAnAutoscalersNumberIsFollowed(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	h := newObject("HorizontalPodAutoscaler", "grow")
	merge(h, object{"spec": object{"scaleTargetRef": object{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
	s.do(func() { s.store("horizontalpodautoscalers", h) })
	x := serve(t, s, "deployment/web", nil)
	r := x.inside()
	s.scaleTo("deployments", "web", 3)
	eventually(t, "three", func() bool { return x.Status().Ready == 3 && x.Status().Target == 3 })
	r.Release(reserver.Answered)
	x.Sleep()
	eventually(t, "sleep", func() bool { return s.replicas("deployments", "web") == 0 })
	for _, c := range s.made("patch deployments/web/scale") {
		if n := number(child(c.body, "spec"), "replicas"); n > 1 {
			t.Fatalf("scaled to %d", n)
		}
	}
}

func TestAnOutageDoesNotTouchWhoIsServed(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	x := serve(t, s, "deployment/web", nil)
	x.inside().Release(reserver.Answered)
	s.stop()
	eventually(t, "the trouble", func() bool { return x.Status().Trouble != nil })
	for range 100 {
		x.inside().Release(reserver.Answered)
	}
	s.start()
	eventually(t, "its end", func() bool { return x.Status().Trouble == nil })
}

func TestARolloutServesWithoutAGap(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 2)
	x := serve(t, s, "deployment/web", func(st *control.Settings) { st.Min = 2 })
	eventually(t, "both", func() bool { return x.Status().Ready == 2 })
	if err := x.Restart(); err != nil {
		t.Fatal(err)
	}
	var gaps sync.WaitGroup
	stop := make(chan struct{})
	gaps.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if x.slots.Stats().Open == 0 {
				t.Error("no instance serves")
				return
			}
		}
	})
	// As the Deployment controller rolls out, one by one.
	s.do(func() {
		d := s.objects["deployments"]["web"]
		s.store("replicasets", owned(newObject("ReplicaSet", "web-2"), d, object{
			"spec": object{"replicas": float64(0), "selector": child(d, "spec")["selector"]},
		}))
	})
	for _, step := range []struct {
		set string
		n   int
	}{{"web-2", 1}, {"web-1", 1}, {"web-2", 2}, {"web-1", 0}} {
		s.change("replicasets", step.set, func(o object) { o["spec"].(object)["replicas"] = float64(step.n) })
		want := s.livePods()
		eventually(t, "that step", func() bool {
			var have []string
			for _, in := range x.Instances() {
				if in.State == control.InstanceReady {
					have = append(have, strings.Split(in.ID, ".")[0])
				}
			}
			slices.Sort(have)
			return slices.Equal(have, want)
		})
	}
	close(stop)
	gaps.Wait()
	if n := len(s.made("patch deployments/web/scale")) + len(s.made("delete")); n != 0 {
		t.Fatalf("the rollout was interfered with: %v", s.made("patch"))
	}
	eventually(t, "the end", func() bool { return len(s.livePods()) == 2 })
}
