package kubernetes

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// threeReady is a Deployment with three pods that are ready.
func threeReady(t *testing.T) (*apiServer, *bench, scaler.Report) {
	t.Helper()
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 3)
	b := openOn(t, s, "deployment/web")
	return s, b, b.has(3, 3)
}

func TestTheChosenPodIsTheOneThatGoes(t *testing.T) {
	for _, victim := range []string{"web-1-p1", "web-1-p2", "web-1-p3"} {
		s, b, r := threeReady(t)
		b.scale(2, idOf(t, r, victim))
		b.has(2, 2)
		if pods := s.livePods(); len(pods) != 2 || slices.Contains(pods, victim) {
			t.Fatalf("%s was to go; left are %v", victim, pods)
		}
		var order []string
		for _, c := range s.made("") {
			if c.verb == "patch" || c.verb == "delete" {
				order = append(order, c.String())
			}
		}
		want := []string{"patch pods/" + victim, "patch deployments/web/scale", "delete pods/" + victim, "patch deployments/web"}
		if !slices.Equal(order, want) {
			t.Fatalf("calls %v", order)
		}
		if c := s.made("delete pods/")[0]; text(child(c.body, "preconditions"), "uid") == "" {
			t.Fatal("deleted without the uid of the pod")
		}
	}
}

func TestAReplacementMadeInBetweenIsTheOneThatGoes(t *testing.T) {
	s, b, r := threeReady(t)
	// The controllers see the deletion before the new number, and its pods
	// begin as pending ones.
	s.controllers(nil)
	real := s.reconcile
	s.mu.Lock()
	s.reconcile = nil
	s.mu.Unlock()
	s.use(func(c call) {
		if c.String() == "patch deployments/web" {
			// After both: the pod first.
			s.mu.Lock()
			d := copyOf(s.objects["deployments"]["web"])
			n := d["spec"].(object)["replicas"]
			d["spec"].(object)["replicas"] = float64(3)
			s.store("deployments", d)
			real(s)
			d = copyOf(d)
			d["spec"].(object)["replicas"] = n
			s.store("deployments", d)
			real(s)
			s.mu.Unlock()
		}
	})
	b.scale(2, idOf(t, r, "web-1-p2"))
	b.has(2, 2)
	if pods := s.livePods(); !slices.Equal(pods, []string{"web-1-p1", "web-1-p3"}) {
		t.Fatalf("left are %v", pods)
	}
}

func TestNoPodIsStoppedWhileAnotherCouldBeTakenInItsPlace(t *testing.T) {
	for name, state := range map[string]func(object){
		"not ready": running("10.0.0.1", false),
		"pending":   func(o object) { o["status"].(object)["phase"] = "Pending" },
	} {
		t.Run(name, func(t *testing.T) {
			s, b, r := threeReady(t)
			s.change("pods", "web-1-p1", state)
			b.settled("the state", func(r scaler.Report) bool {
				b.runner.mu.Lock()
				defer b.runner.mu.Unlock()
				mine, _ := b.runner.own(b.runner.ns.see(b.runner))
				return slices.ContainsFunc(mine, func(p *pod) bool { return p.rank() != rankReady })
			})
			if err := b.order(2, idOf(t, r, "web-1-p2")); !errors.Is(err, scaler.ErrLater) {
				t.Fatalf("%v", err)
			}
			if n := len(s.livePods()); n != 3 || s.replicas("deployments", "web") != 3 {
				t.Fatalf("%d pods, scale %d", n, s.replicas("deployments", "web"))
			}
			// It goes itself at any time, and to zero all go.
			b.scale(2, idOf(t, r, "web-1-p1"))
			b.has(2, 2)
			if pods := s.livePods(); slices.Contains(pods, "web-1-p1") {
				t.Fatalf("left are %v", pods)
			}
		})
	}
	t.Run("to zero", func(t *testing.T) {
		s, b, r := threeReady(t)
		s.change("pods", "web-1-p1", running("10.0.0.1", false))
		var ids []string
		for _, in := range r.Instances {
			ids = append(ids, in.ID)
		}
		b.scale(0, ids...)
		b.has(0, 0)
	})
}

func TestAPodThatDoesNotBecomeReadyIsDeletedByNameAndReplaced(t *testing.T) {
	s, b, r := threeReady(t)
	b.scale(3, idOf(t, r, "web-1-p2"))
	b.settled("its replacement", func(r scaler.Report) bool {
		return len(alive(r)) == 3 && !slices.ContainsFunc(alive(r), func(in scaler.Instance) bool { return strings.HasPrefix(in.ID, "web-1-p2.") })
	})
	if n := len(s.made("patch deployments/web/scale")); n != 0 {
		t.Fatalf("the scale was patched %d times", n)
	}
}

func TestAVictimThatWasReplacedUnderItsNameIsNotTouched(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("StatefulSet", "db", 1)
	b := openOn(t, s, "statefulset/db")
	old := idOf(t, b.has(1, 1), "db-0")
	s.do(func() { s.remove("pods", "db-0") })
	b.settled("the new one", func(r scaler.Report) bool { return len(alive(r)) == 1 && alive(r)[0].ID != old })
	b.scale(1, old)
	if n := len(s.made("delete")); n != 0 {
		t.Fatal("the new pod of the name was deleted")
	}
}

func TestAStatefulSetStopsFromTheHighestOrdinal(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("StatefulSet", "db", 12)
	b := openOn(t, s, "statefulset/db")
	r := b.has(12, 12)
	top := slices.MaxFunc(r.Instances, func(a, b scaler.Instance) int { return a.StopRank - b.StopRank })
	if !strings.HasPrefix(top.ID, "db-11.") {
		t.Fatalf("%+v", top)
	}
	b.scale(10, idOf(t, r, "db-11"), idOf(t, r, "db-10"))
	r = b.has(10, 10)
	// One in the middle that works stays, since another would go.
	if err := b.order(9, idOf(t, r, "db-3")); !errors.Is(err, scaler.ErrLater) {
		t.Fatalf("%v", err)
	}
	b.has(10, 10)
	// One that does not work is made anew.
	s.change("pods", "db-3", running("10.0.0.1", false))
	eventually(t, "the news", func() bool {
		items, _, _ := b.runner.ns.pods.all()
		return slices.ContainsFunc(items, func(p *pod) bool { return p.name == "db-3" && !p.ready })
	})
	broken := idOf(t, r, "db-3")
	if err := b.order(9, broken); !errors.Is(err, scaler.ErrLater) {
		t.Fatalf("%v", err)
	}
	b.settled("a new one", func(r scaler.Report) bool { return len(alive(r)) == 10 && idOf(t, r, "db-3") != broken })
	if s.replicas("statefulsets", "db") != 10 {
		t.Fatal("another pod had to go for it")
	}
}

func TestACustomResourceIsScaledAndItsVictimGoesBeforeTheNumber(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Foo", "x", 0)
	b := openOn(t, s, "foos.v1.example.com/x")
	b.has(0, 0)
	b.scale(3)
	r := b.has(3, 3)
	for _, c := range s.made("watch") {
		if c.resource != "pods" {
			t.Fatalf("watches %v, which it does not need", c)
		}
	}
	victim := alive(r)[1]
	s.mu.Lock()
	reconcile := s.reconcile
	s.reconcile = nil // until both are told
	s.mu.Unlock()
	b.scale(2, victim.ID)
	deleted, patched := s.made("delete pods/"), s.made("patch foos/x/scale")
	if len(deleted) != 1 || len(patched) != 2 {
		t.Fatalf("%v, %v", deleted, patched)
	}
	s.mu.Lock()
	s.reconcile = reconcile
	s.mu.Unlock()
	s.do(func() {})
	r = b.has(2, 2)
	if slices.ContainsFunc(alive(r), func(in scaler.Instance) bool { return in.ID == victim.ID }) {
		t.Fatalf("%+v", r)
	}
}

func TestAConflictWithAnotherWriterIsTriedAgain(t *testing.T) {
	s, b, r := threeReady(t)
	writes := 0
	s.use(func(c call) {
		if c.String() == "patch deployments/web/scale" && writes < 3 {
			writes++
			// As the Deployment controller, which writes the status.
			s.change("deployments", "web", func(o object) { merge(o, object{"status": object{"observedGeneration": float64(writes)}}) })
		}
	})
	b.scale(2, idOf(t, r, "web-1-p3"))
	b.has(2, 2)
	if n := len(s.made("patch deployments/web/scale")); n != 4 {
		t.Fatalf("%d tries", n)
	}
}

func TestAnOrderThatCrossesAnotherHandIsDecidedAnew(t *testing.T) {
	s, b, r := threeReady(t)
	done := false
	s.use(func(c call) {
		if c.String() == "patch deployments/web/scale" && !done {
			done = true
			s.scaleTo("deployments", "web", 5)
		}
	})
	if err := b.order(2, idOf(t, r, "web-1-p3")); !errors.Is(err, scaler.ErrLater) {
		t.Fatalf("%v", err)
	}
	b.has(5, 5)
	if cost := s.annotation("pods", "web-1-p3", costKey); cost != "" {
		t.Fatalf("the pod that stays has the cost %s", cost)
	}
}

func TestAScaleByHandIsSeen(t *testing.T) {
	for _, kind := range []string{"Deployment", "StatefulSet"} {
		t.Run(kind, func(t *testing.T) {
			s := newAPIServer(t)
			s.controllers(running("10.0.0.1", true))
			s.workload(kind, "web", 1)
			resource := strings.ToLower(kind)
			b := openOn(t, s, resource+"/web")
			b.has(1, 1)
			s.scaleTo(resource+"s", "web", 4)
			b.has(4, 4)
			s.scaleTo(resource+"s", "web", 0)
			b.has(0, 0)
		})
	}
}

func TestDuringARolloutBothSetsCountAndNothingIsTakenAway(t *testing.T) {
	s, b, _ := threeReady(t)
	s.do(func() {
		d := s.objects["deployments"]["web"]
		s.store("replicasets", owned(newObject("ReplicaSet", "web-2"), d, object{
			"spec": object{"replicas": float64(1), "selector": child(d, "spec")["selector"]},
		}))
	})
	r := b.has(4, 3)
	if r.Hold == nil || !r.Hold.Fewer || r.Hold.More || r.Hold.Failure != nil {
		t.Fatalf("%+v", r.Hold)
	}
	for _, c := range []struct {
		set string
		n   float64
	}{{"web-2", 3}, {"web-1", 0}} {
		s.change("replicasets", c.set, func(o object) { o["spec"].(object)["replicas"] = c.n })
	}
	b.settled("the end of the rollout", func(r scaler.Report) bool { return len(alive(r)) == 3 && r.Hold == nil })
}

func TestAnAutoscalerKeepsTheNumberAndUsherTheZero(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	h := newObject("HorizontalPodAutoscaler", "grow")
	merge(h, object{"spec": object{"scaleTargetRef": object{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
	s.do(func() { s.store("horizontalpodautoscalers", h) })
	b := openOn(t, s, "deployment/web")
	r := b.has(0, 0)
	if r.Hold == nil || !r.Hold.Fewer || !r.Hold.More || r.Hold.None || r.Hold.Failure.Reason != scaler.ReasonConflict || !strings.Contains(r.Hold.Failure.Detail, "grow") {
		t.Fatalf("%+v", r.Hold)
	}
	b.scale(1)
	b.has(1, 1)
	b.scale(2)
	s.scaleTo("deployments", "web", 3) // the autoscaler
	r = b.has(3, 3)
	if err := b.order(1, r.Instances[0].ID, r.Instances[1].ID); !errors.Is(err, scaler.ErrLater) {
		t.Fatalf("%v", err)
	}
	if n := s.replicas("deployments", "web"); n != 3 {
		t.Fatalf("scaled to %d", n)
	}
	b.scale(0)
	b.has(0, 0)
}

func TestASecondUsherServesAndDoesNotScale(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	first := openOn(t, s, "deployment/web")
	first.has(0, 0)
	first.scale(1)
	second := openOn(t, s, "deployment/web", func(o *options) { o.dataDir = "/elsewhere" })
	r := second.has(1, 1)
	if h := r.Hold; h == nil || !h.Fewer || !h.More || !h.None || h.Failure.Reason != scaler.ReasonConflict {
		t.Fatalf("%+v", h)
	}
	if f, ok := errors.AsType[*scaler.Failure](second.order(2)); !ok || f.Reason != scaler.ReasonConflict {
		t.Fatalf("%v", f)
	}
	if n := s.replicas("deployments", "web"); n != 1 {
		t.Fatalf("scaled to %d", n)
	}
	// The first ends and removes its annotation: the second owns the workload.
	first.close()
	if m := s.annotation("deployments", "web", ownerKey); m != "" {
		t.Fatalf("the ownership annotation is left: %s", m)
	}
	s.scaleTo("deployments", "web", 2) // something that is noticed
	second.settled("the end of the hold", func(r scaler.Report) bool { return r.Hold == nil })
	second.scale(3)
	second.has(3, 3)
}

// The Caddy that led was killed, or has only stopped to lead.
func TestTheNextLeaderOfAClusterScalesAtOnce(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	of := func(cluster, dataDir string) func(*options) {
		return func(o *options) { o.cluster, o.dataDir = cluster, dataDir }
	}
	first := openOn(t, s, "deployment/web", of("main/1", "/data"))
	first.has(0, 0)
	first.scale(1)
	next := openOn(t, s, "deployment/web", of("main/1", "/elsewhere"))
	if r := next.has(1, 1); r.Hold != nil {
		t.Fatalf("%+v", r.Hold)
	}
	next.scale(2)
	next.has(2, 2)
	// It does not give up what the others go on with.
	first.close()
	other := openOn(t, s, "deployment/web", of("other/1", "/data"))
	if r := other.has(2, 2); r.Hold == nil || !strings.Contains(r.Hold.Failure.Detail, "cluster main/1") {
		t.Fatalf("%+v", r.Hold)
	}
}

func TestAMarkThatWasLeftBehindExpires(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	left := ownership{By: "another/usher", Time: time.Now().Add(-ownershipLife).Add(800 * time.Millisecond)}
	s.change("deployments", "web", func(o object) {
		merge(o, object{"metadata": object{"annotations": object{ownerKey: left.String()}}})
	})
	b := openOn(t, s, "deployment/web")
	b.await("the hold", func(r scaler.Report) bool { return r.Hold != nil })
	b.settled("its end", func(r scaler.Report) bool { return r.Hold == nil && r.Desired == 1 })
	b.scale(2)
	if m := s.annotation("deployments", "web", ownerKey); !strings.Contains(m, b.runner.self) {
		t.Fatalf("the ownership annotation is %s", m)
	}
}

func TestTwoServicesOverOneWorkloadDoNotFight(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	first := openOn(t, s, "deployment/web")
	first.has(1, 1)
	second := openOn(t, s, "deployment/web", func(o *options) { o.service, o.backend.Kubeconfig = "copy", first.config })
	r := second.has(1, 1)
	if h := r.Hold; h == nil || !strings.Contains(h.Failure.Short, "service web scales it too") {
		t.Fatalf("%+v", h)
	}
	first.close()
	second.settled("the end of the hold", func(r scaler.Report) bool { return r.Hold == nil })
	second.scale(2)
	second.has(2, 2)
}

func TestALaterRevisionOfTheSameWorkloadTakesOverWithoutARestart(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 2)
	old := openOn(t, s, "deployment/web")
	before := old.has(2, 2)
	next := openOn(t, s, "deployment/web", func(o *options) {
		o.revision, o.backend.Kubeconfig, o.backend.Port = "r2", old.config, "9090"
	})
	after := next.has(2, 2)
	r := old.settled("that it gives up", func(r scaler.Report) bool { return r.Desired == 0 && len(alive(r)) == 0 })
	if len(r.Instances) != 2 || r.Instances[0].Phase != scaler.PhaseStopping {
		t.Fatalf("%+v", r)
	}
	for _, in := range before.Instances {
		if slices.ContainsFunc(after.Instances, func(o scaler.Instance) bool { return o.ID == in.ID }) {
			t.Fatalf("%s twice", in.ID)
		}
	}
	old.scale(0)
	if n := s.replicas("deployments", "web"); n != 2 {
		t.Fatalf("scaled to %d", n)
	}
	// The configuration is taken back: the first is asked again.
	eventually(t, "the order", func() bool { return old.order(2) == nil })
	old.has(2, 2)
	next.settled("that it gives up", func(r scaler.Report) bool { return r.Desired == 0 && len(alive(r)) == 0 })
	if n := len(s.made("patch deployments/web/scale")); n != 0 || len(s.made("delete")) != 0 {
		t.Fatal("something was changed")
	}
}

func TestARestartIsARolloutOfThePlatforms(t *testing.T) {
	s, b, _ := threeReady(t)
	if err := b.runner.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	at := text(child(child(child(child(s.objects["deployments"]["web"], "spec"), "template"), "metadata"), "annotations"), restartKey)
	s.mu.Unlock()
	if _, err := time.Parse(time.RFC3339, at); err != nil {
		t.Fatal(err)
	}
	s.do(func() { s.store("replicasets", withSpec(newObject("ReplicaSet", "alone"))) })
	other := openOn(t, s, "replicaset/alone")
	if f, ok := errors.AsType[*scaler.Failure](other.runner.Restart(t.Context())); !ok || f.Reason != scaler.ReasonConflict {
		t.Fatalf("%v", f)
	}
}

func withSpec(o object) object {
	merge(o, object{"spec": object{"replicas": float64(0), "selector": object{"matchLabels": object{"app": "alone"}}, "template": object{}}})
	return o
}

func TestAMarkThatMayNotBeWrittenIsSaidOnceAndNotFatal(t *testing.T) {
	s, b, _ := threeReady(t)
	s.do(func() {
		s.refuse = func(c call) (int, string) {
			if c.String() == "patch deployments/web" {
				return http.StatusForbidden, `deployments.apps "web" is forbidden: User "u" cannot patch resource "deployments"`
			}
			return 0, ""
		}
	})
	b.scale(4)
	b.scale(5)
	b.has(5, 5)
	if n := b.logs.FilterMessageSnippet("ownership annotation cannot be written").Len(); n != 1 {
		t.Fatalf("said %d times", n)
	}
}

func TestManyServicesOfANamespaceShareOneWatch(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	config := s.kubeconfig()
	var all []*bench
	for i := range 20 {
		name := fmt.Sprintf("web%d", i)
		s.workload("Deployment", name, 1)
		all = append(all, openOn(t, s, "deployment/"+name, func(o *options) {
			o.service, o.backend.Kubeconfig = name, config
		}))
	}
	for _, b := range all {
		b.has(1, 1)
	}
	s.mu.Lock()
	watches := s.watches
	s.mu.Unlock()
	if watches != 2 { // pods and ReplicaSets
		t.Fatalf("%d watches", watches)
	}
	for _, b := range all[1:] {
		b.close()
	}
	all[0].scale(2)
	all[0].has(2, 2)
	all[0].close()
	eventually(t, "the end of the watches", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.watches == 0
	})
}
