package kubernetes

import (
	"log/slog"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// observed begins to watch what a bench runs, as another Caddy of its cluster.
func observed(t *testing.T, b *bench) (o scaler.Observation, changed chan struct{}) {
	t.Helper()
	backend := &Backend{Resource: "deployment/web", Kubeconfig: b.server.kubeconfig()}
	if err := backend.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	changed = make(chan struct{}, 1)
	o, err := backend.Observe(scaler.Env{Service: "web", Logger: func() *slog.Logger { return quiet() }}, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	eventually(t, "it has seen the pods", func() bool {
		_, synced, _ := o.(*observation).ns.pods.all()
		return synced
	})
	return o, changed
}

func TestTheEndOfAPodIsKnownWithoutTheLeader(t *testing.T) {
	s, b, r := threeReady(t)
	o, changed := observed(t, b)
	ids := make([]string, 3)
	for k, pod := range s.livePods() {
		ids[k] = idOf(t, r, pod)
		if o.Ended(ids[k]) {
			t.Errorf("%s has not ended", ids[k])
		}
	}
	for _, id := range []string{"web-1-p9.00000000", ids[0] + ".run2", ids[0] + ".r2a", ids[0] + "0"} {
		if o.Ended(id) {
			t.Errorf("%s is not known here", id)
		}
	}
	wantEnd := func(what, id string) {
		t.Helper()
		eventually(t, what, func() bool { return o.Ended(id) })
		<-changed
	}

	pods := s.livePods()
	s.do(func() { s.remove("pods", pods[0]) })
	wantEnd("its pod is gone", ids[0])
	for _, id := range []string{ids[0] + ".run2", ids[0] + ".r2a"} {
		if !o.Ended(id) {
			t.Errorf("the pod of %s is gone", id)
		}
	}
	s.change("pods", pods[1], func(o object) { o["status"].(object)["phase"] = "Failed" })
	wantEnd("its pod has failed", ids[1])
	s.change("pods", pods[2], func(o object) {
		c := o["status"].(object)["containerStatuses"].([]any)[0].(object)
		c["restartCount"] = float64(1)
	})
	wantEnd("its container runs anew", ids[2])
	if o.Ended(ids[2] + ".run2") {
		t.Error("the new run has not ended")
	}
}

// While nothing is seen much can happen.
func TestTheEndOfAPodThatNoEventToldOfIsKnown(t *testing.T) {
	s, b, r := threeReady(t)
	o, _ := observed(t, b)
	pods := s.livePods()
	s.do(func() { s.held = true })
	s.do(func() { s.remove("pods", pods[0]) })
	s.compact()
	s.do(func() { s.held = false })
	s.dropWatches()
	eventually(t, "its pod is gone", func() bool { return o.Ended(idOf(t, r, pods[0])) })
	if o.Ended(idOf(t, r, pods[1])) {
		t.Error("this one is there")
	}
}

func TestToObserveMakesNoOtherCall(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	observed(t, &bench{t: t, server: s})
	for _, c := range s.made("") {
		if c.resource != "pods" || c.verb != "list" && c.verb != "watch" {
			t.Errorf("it calls %s", c)
		}
	}
}
