package kubernetes

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func TestTheFirstRequestIsOneCallAndThePodCountsFromItsAddressOn(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(nil)
	s.workload("Deployment", "web", 0)
	b := openOn(t, s, "deployment/web")
	b.has(0, 0)
	before := len(s.made(""))
	b.scale(1)
	calls := s.made("")[before:]
	if calls[0].String() != "patch deployments/web/scale" {
		t.Fatalf("the first call was %v", calls[0])
	}
	r := b.has(1, 1)
	in := r.Instances[0]
	if in.Address != "" || in.Phase != scaler.PhaseStarting {
		t.Fatalf("%+v", in)
	}
	pod := s.livePods()[0]
	s.change("pods", pod, running("10.1.2.3", false))
	r = b.settled("the address", func(r scaler.Report) bool { return r.Instances[0].Address == "10.1.2.3:8080" })
	if r.Instances[0].Phase != scaler.PhaseStarting || r.Instances[0].ID != in.ID {
		t.Fatalf("%+v", r.Instances[0])
	}
	s.change("pods", pod, running("10.1.2.3", true))
	b.settled("readiness", func(r scaler.Report) bool { return r.Instances[0].Phase == scaler.PhaseReady })
	// What follows from an order of ours needs no look at the scale again.
	for _, c := range s.made("")[before:] {
		if c.String() == "get deployments/web/scale" {
			t.Fatal("the scale was read again")
		}
	}
}

func TestWhatRunsAlreadyIsReportedBeforeAnyOrderIsCarriedOut(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 3)
	hold := make(chan struct{})
	s.slow["get deployments/web"] = hold
	b := openOn(t, s, "deployment/web")
	done := make(chan error, 1)
	go func() { done <- b.order(1) }()
	eventually(t, "the question", func() bool { return len(s.made("get deployments/web")) == 1 })
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.has(3, 3)
	if n := s.replicas("deployments", "web"); n != 3 {
		t.Fatalf("scaled to %d", n)
	}
}

func TestOnlyLivingPodsOfTheWorkloadAreInstances(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	stranger := func(name string, change func(object)) {
		p := newObject("Pod", name)
		p["metadata"].(object)["labels"] = object{"app": "web"}
		running("10.9.9.9", true)(p)
		if change != nil {
			change(p)
		}
		s.do(func() { s.store("pods", p) })
	}
	stranger("by-hand", nil)
	stranger("of-another-set", func(p object) { owned(p, newObject("ReplicaSet", "other"), object{}) })
	s.mu.Lock()
	set := s.objects["replicasets"]["web-1"]
	s.mu.Unlock()
	stranger("failed", func(p object) { owned(p, set, object{"status": object{"phase": "Failed"}}) })
	b := openOn(t, s, "deployment/web")
	r := b.has(1, 1)
	if len(r.Instances) != 1 || !strings.HasPrefix(r.Instances[0].ID, "web-1-p1.") {
		t.Fatalf("%+v", r.Instances)
	}
}

func TestAPodThatIsBeingDeletedStopsAndThenIsGone(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	b := openOn(t, s, "deployment/web")
	id := b.has(1, 1).Instances[0].ID
	pod := s.livePods()[0]
	s.change("pods", pod, func(o object) { merge(o, object{"metadata": object{"annotations": object{"test/lingers": "yes"}}}) })
	s.scaleTo("deployments", "web", 0)
	r := b.has(0, 0)
	if len(r.Instances) != 1 || r.Instances[0].Phase != scaler.PhaseStopping || r.Instances[0].ID != id {
		t.Fatalf("%+v", r.Instances)
	}
	s.do(func() { s.remove("pods", pod) })
	b.settled("its end", func(r scaler.Report) bool { return len(r.Instances) == 0 })
}

func TestAContainerThatRestartsIsANewInstanceAtTheSameAddress(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	b := openOn(t, s, "deployment/web")
	first := b.has(1, 1).Instances[0]
	pod := s.livePods()[0]
	s.change("pods", pod, containerIs(object{"restartCount": float64(0), "state": object{"terminated": object{"exitCode": float64(137), "reason": "OOMKilled", "message": "last words"}}}))
	r := b.await("the end of the first", func(r scaler.Report) bool {
		return len(r.Instances) == 2 && r.Instances[0].ID == first.ID && r.Instances[0].Phase == scaler.PhaseEnded
	})
	if f := r.Instances[0].Failure; f == nil || f.Reason != scaler.ReasonExit || f.Short != "OOMKilled, exit status 137" || !strings.Contains(f.Detail, "last words") {
		t.Fatalf("%+v", f)
	}
	second := r.Instances[1]
	if second.ID == first.ID || second.Address != first.Address {
		t.Fatalf("%+v", second)
	}
	// Waiting and running again are the same instance.
	before := object{"terminated": object{"exitCode": float64(137), "reason": "OOMKilled"}}
	s.change("pods", pod, containerIs(object{"restartCount": float64(0), "state": object{"waiting": object{"reason": "ContainerCreating"}}, "lastState": before}))
	s.change("pods", pod, containerIs(object{"restartCount": float64(1), "state": object{"running": object{}}, "lastState": before}))
	s.change("pods", pod, func(o object) { o["status"].(object)["conditions"] = []any{} })
	b.settled("the latest word", func(r scaler.Report) bool { return r.Instances[0].Phase == scaler.PhaseStarting })
	if r := b.has(1, 1); len(r.Instances) != 1 || r.Instances[0].ID != second.ID {
		t.Fatalf("%+v", r.Instances)
	}
}

func TestAContainerThatEndsBecauseItsPodIsDeletedIsNoNewInstance(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	b := openOn(t, s, "deployment/web")
	id := b.has(1, 1).Instances[0].ID
	pod := s.livePods()[0]
	s.change("pods", pod, func(o object) {
		merge(o, object{"metadata": object{"annotations": object{"test/lingers": "yes"}}})
	})
	b.scale(0, id)
	b.has(0, 0)
	s.change("pods", pod, func(o object) {
		containerIs(object{"restartCount": float64(0), "state": object{"terminated": object{"exitCode": float64(137)}}})(o)
		merge(o, object{"status": object{"phase": "Failed", "podIP": "10.0.0.2"}})
	})
	s.do(func() { s.remove("pods", pod) })
	b.settled("its end", func(r scaler.Report) bool { return len(r.Instances) == 0 })
	for _, r := range b.history() {
		for _, in := range r.Instances {
			if in.ID != id || in.Phase == scaler.PhaseEnded {
				t.Fatalf("%+v", in)
			}
		}
	}
}

func TestThePortIsFoundByNumberNameOrAsTheFirstDeclared(t *testing.T) {
	for port, want := range map[string]string{"": "10.0.0.1:8080", "9090": "10.0.0.1:9090", "metrics": "10.0.0.1:9100", "http": "10.0.0.1:8080"} {
		p := newObject("Pod", "web")
		merge(p, object{"spec": object{"containers": []any{
			object{"name": "app", "ports": []any{object{"name": "dns", "containerPort": int64(53), "protocol": "UDP"}, object{"name": "http", "containerPort": int64(8080)}}},
			object{"name": "side", "ports": []any{object{"name": "metrics", "containerPort": int64(9100)}}},
		}}, "status": object{"podIP": "10.0.0.1"}})
		if got, f := newPod(wrap(p)).address(port); got != want || f != nil {
			t.Errorf("port %q: %s, %v", port, got, f)
		}
	}
}

func TestAPortThatNobodyDeclaresIsNamed(t *testing.T) {
	p := newObject("Pod", "web")
	merge(p, object{"spec": object{"containers": []any{object{"name": "app"}}}, "status": object{"podIP": "10.0.0.1"}})
	for port, words := range map[string]string{"": "declares no port", "http": "no port http"} {
		in := newPod(wrap(p)).instance(port, "")
		if f := in.Failure; f == nil || !f.ForGood || !strings.Contains(f.Short, words) || in.Address != "" {
			t.Errorf("port %q: %+v", port, in)
		}
	}
}

func TestIPv6AndDualStack(t *testing.T) {
	for name, test := range map[string]struct {
		status object
		want   string
	}{
		"v6":         {object{"podIP": "fd00::5"}, "[fd00::5]:80"},
		"dual stack": {object{"podIP": "10.0.0.5", "podIPs": []any{object{"ip": "10.0.0.5"}, object{"ip": "fd00::5"}}}, "10.0.0.5:80"},
		"v6 first":   {object{"podIPs": []any{object{"ip": "fd00::6"}, object{"ip": "10.0.0.6"}}}, "[fd00::6]:80"},
	} {
		p := newObject("Pod", "web")
		p["status"] = test.status
		if got, _ := newPod(wrap(p)).address("80"); got != test.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestWhatKeepsAPodFromStartingIsSaidInThePlatformsWords(t *testing.T) {
	waiting := func(reason, message string) object {
		return object{"restartCount": float64(0), "state": object{"waiting": object{"reason": reason, "message": message}}}
	}
	crashed := waiting("CrashLoopBackOff", "back-off 10s restarting failed container")
	crashed["lastState"] = object{"terminated": object{"exitCode": float64(3), "reason": "Error", "message": "no database"}}
	for name, test := range map[string]struct {
		status  object
		reason  scaler.Reason
		forGood bool
		short   string
		detail  string
	}{
		"image pull":         {waiting("ImagePullBackOff", `Back-off pulling image "nope"`), scaler.ReasonImage, true, "ImagePullBackOff", `pulling image "nope"`},
		"first pull":         {waiting("ErrImagePull", "not found"), scaler.ReasonImage, false, "ErrImagePull", "not found"},
		"image name":         {waiting("InvalidImageName", "couldn't parse"), scaler.ReasonImage, true, "InvalidImageName", "couldn't parse"},
		"crash loop":         {crashed, scaler.ReasonCrashLoop, true, "CrashLoopBackOff, exit status 3", "no database"},
		"configuration":      {waiting("CreateContainerConfigError", `secret "x" not found`), scaler.ReasonExec, true, "CreateContainerConfigError", `secret "x" not found`},
		"being made, though": {waiting("ContainerCreating", ""), "", false, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.controllers(nil)
			s.workload("Deployment", "web", 1)
			b := openOn(t, s, "deployment/web")
			b.has(1, 1)
			pod := s.livePods()[0]
			s.change("pods", pod, func(o object) {
				merge(o, object{"spec": object{"nodeName": "n1"}, "status": object{"podIP": "10.0.0.7"}})
				containerIs(test.status)(o)
			})
			r := b.settled("the state", func(r scaler.Report) bool { return len(alive(r)) == 1 && alive(r)[0].Address != "" })
			f := alive(r)[0].Failure
			if test.reason == "" {
				if f != nil {
					t.Fatalf("%v", f)
				}
				return
			}
			if f == nil || f.Reason != test.reason || f.ForGood != test.forGood || f.Short != test.short || !strings.Contains(f.Detail, test.detail) {
				t.Fatalf("%+v", f)
			}
		})
	}
}

func TestAPodWithoutANodeWaitsAndSaysWhatFor(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(nil)
	s.workload("Deployment", "web", 1)
	b := openOn(t, s, "deployment/web")
	b.has(1, 1)
	s.change("pods", s.livePods()[0], func(o object) {
		merge(o, object{"status": object{"conditions": []any{object{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient cpu."}}}})
	})
	r := b.settled("the scheduler's word", func(r scaler.Report) bool { return r.Instances[0].Delay != nil })
	in := r.Instances[0]
	if in.Failure != nil || in.Delay.Reason != scaler.ReasonUnschedulable || in.Delay.Short != "Unschedulable" || !strings.Contains(in.Delay.Detail, "Insufficient cpu") {
		t.Fatalf("%+v", in)
	}
}

func TestAnEvictedPodEndsWithTheReason(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	b := openOn(t, s, "deployment/web")
	id := b.has(1, 1).Instances[0].ID
	s.change("pods", s.livePods()[0], func(o object) {
		merge(o, object{"status": object{"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}})
	})
	r := b.await("its end", func(r scaler.Report) bool {
		return len(r.Instances) > 0 && r.Instances[0].ID == id && r.Instances[0].Phase == scaler.PhaseEnded
	})
	if f := r.Instances[0].Failure; f.Short != "Evicted" || !strings.Contains(f.Detail, "memory") {
		t.Fatalf("%+v", f)
	}
	b.has(1, 1) // its replacement
}

func TestPodsThatTheQuotaForbidsAreTroubleWithTheQuotasWords(t *testing.T) {
	const message = `pods "web-1-x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=5, limited: pods=5`
	t.Run("by a condition", func(t *testing.T) {
		s := newAPIServer(t)
		s.controllers(nil)
		s.workload("Deployment", "web", 0)
		b := openOn(t, s, "deployment/web")
		b.has(0, 0)
		s.change("replicasets", "web-1", func(o object) {
			merge(o, object{"metadata": object{"annotations": object{"test/quota": "yes"}}})
		})
		b.scale(1)
		s.change("replicasets", "web-1", func(o object) {
			merge(o, object{"status": object{"conditions": []any{object{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}}}})
		})
		isQuota(t, b)
		s.change("replicasets", "web-1", func(o object) {
			merge(o, object{"metadata": object{"annotations": object{"test/quota": nil}}, "status": object{"conditions": []any{}}})
		})
		b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil && len(alive(r)) == 1 })
	})
	t.Run("by an event", func(t *testing.T) {
		s := newAPIServer(t)
		s.controllers(nil)
		s.workload("StatefulSet", "web", 0)
		b := openOn(t, s, "statefulset/web")
		b.has(0, 0)
		s.change("statefulsets", "web", func(o object) {
			merge(o, object{"metadata": object{"annotations": object{"test/quota": "yes"}}})
		})
		b.scale(1)
		e := newObject("Event", "e1")
		merge(e, object{"reason": "FailedCreate", "message": message, "lastTimestamp": e["metadata"].(object)["creationTimestamp"]})
		s.do(func() { s.store("events", e) })
		isQuota(t, b)
	})
}

func isQuota(t *testing.T, b *bench) {
	t.Helper()
	r := b.settled("the refusal", func(r scaler.Report) bool { return r.Trouble != nil })
	if f := r.Trouble; f.Reason != scaler.ReasonQuota || !f.ForGood || !strings.Contains(f.Detail, "exceeded quota: small") {
		t.Fatalf("%+v", f)
	}
}

func TestAWorkloadThatIsMissingIsSaidAndFoundOnceItIsThere(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	b := openOn(t, s, "deployment/web")
	r := b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if f := r.Trouble; f.Reason != scaler.ReasonNotFound || !f.ForGood || f.Short != "deployment/web does not exist" {
		t.Fatalf("%+v", f)
	}
	if f, ok := errors.AsType[*scaler.Failure](b.order(1)); !ok || f.Reason != scaler.ReasonNotFound {
		t.Fatalf("%+v", f)
	}
	s.workload("Deployment", "web", 0)
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil })
	b.scale(1)
	b.has(1, 1)
}

func TestMissingRightsAreNamedWithTheirVerb(t *testing.T) {
	for denied, words := range map[string]string{
		"get deployments/web":         "not permitted to get deployment/web",
		"get deployments/web/scale":   "not permitted to get the scale of deployment/web",
		"patch deployments/web/scale": "not permitted to patch the scale of deployment/web",
		"list pods":                   "not permitted to watch pods in namespace default",
		"list replicasets":            "not permitted to watch replicasets in namespace default",
	} {
		t.Run(denied, func(t *testing.T) {
			s := newAPIServer(t)
			s.controllers(nil)
			s.workload("Deployment", "web", 0)
			resource := strings.Fields(denied)[1]
			s.refuse = func(c call) (int, string) {
				if c.String() == denied || c.verb == "watch" && c.resource == resource {
					return http.StatusForbidden, c.resource + ` is forbidden: User "system:serviceaccount:default:usher" cannot ` + c.verb + ` resource "` + c.resource + `" in API group "" in the namespace "default"`
				}
				return 0, ""
			}
			b := openOn(t, s, "deployment/web")
			var f *scaler.Failure
			if strings.HasPrefix(denied, "patch") {
				f, _ = errors.AsType[*scaler.Failure](b.order(1))
			} else {
				f = b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil }).Trouble
			}
			if f == nil || f.Reason != scaler.ReasonForbidden || !f.ForGood || strings.Replace(f.Short, "permitted to list", "permitted to watch", 1) != words || !strings.Contains(f.Error(), "cannot ") {
				t.Fatalf("%+v", f)
			}
		})
	}
}

func TestAnEmptySelectorIsRefusedWithTheFieldsName(t *testing.T) {
	s := newAPIServer(t)
	s.workload("Foo", "x", 0)
	s.change("foos", "x", func(o object) { merge(o, object{"spec": object{"selector": nil}}) })
	b := openOn(t, s, "foos.v1.example.com/x")
	r := b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if f := r.Trouble; !f.ForGood || !strings.Contains(f.Detail, "status.selector") || !strings.Contains(f.Detail, "labelSelectorPath") {
		t.Fatalf("%+v", f)
	}
}
