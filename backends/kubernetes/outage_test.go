package kubernetes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestAnAPIServerThatIsAwayKeepsTheLastListAndCatchesUp(t *testing.T) {
	s, b, before := threeReady(t)
	s.stop()
	r := b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if r.Trouble.Reason != scaler.ReasonPlatform || r.Trouble.ForGood {
		t.Fatalf("%+v", r.Trouble)
	}
	if len(alive(r)) != 3 || r.Desired != 3 || r.Instances[0].ID != before.Instances[0].ID {
		t.Fatalf("%+v", r)
	}
	if f, ok := errors.AsType[*scaler.Failure](b.order(4)); !ok || f.Reason != scaler.ReasonPlatform {
		t.Fatalf("%v", f)
	}
	// Much happens meanwhile, and the history of it is forgotten.
	s.scaleTo("deployments", "web", 1)
	s.change("pods", s.livePods()[0], running("10.0.0.9", true))
	s.compact()
	s.start()
	r = b.settled("the catch-up", func(r scaler.Report) bool { return r.Trouble == nil && len(alive(r)) == 1 && r.Desired == 1 })
	if alive(r)[0].Address != "10.0.0.9:8080" {
		t.Fatalf("%+v", r)
	}
	b.scale(2)
	b.has(2, 2)
}

func TestAnAPIServerThatIsAwayAtTheStartIsFoundLater(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	s.stop()
	b := openOn(t, s, "deployment/web")
	b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if f, ok := errors.AsType[*scaler.Failure](b.order(1)); !ok || f.Reason != scaler.ReasonPlatform {
		t.Fatalf("%v", f)
	}
	s.start()
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil })
	b.scale(1)
	b.has(1, 1)
}

func TestAnAPIServerThatIsSilentIsNotWaitedForLong(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 0)
	b := openOn(t, s, "deployment/web")
	b.has(0, 0)
	patience := answerTimeout
	answerTimeout = 100 * time.Millisecond
	defer func() { b.close(); answerTimeout = patience }()
	speak := make(chan struct{})
	s.do(func() { s.slow["patch deployments/web/scale"] = speak })
	f, ok := errors.AsType[*scaler.Failure](b.order(1))
	if !ok || f.Reason != scaler.ReasonPlatform || !f.ForGood || f.Short != "the Kubernetes API does not answer" {
		t.Fatalf("%+v", f)
	}
	b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil && r.Trouble.Short == f.Short })
	b.settled("its end: the API answers to other questions", func(r scaler.Report) bool { return r.Trouble == nil })
	close(speak)
	b.scale(1)
	b.has(1, 1)
}

func TestClosingDoesNotWaitForAnAPIServerThatIsAway(t *testing.T) {
	s, b, _ := threeReady(t)
	b.scale(4)
	s.stop()
	b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	began := time.Now()
	b.close()
	if took := time.Since(began); took > giveUpOwnershipTimeout+time.Second {
		t.Fatalf("took %s", took)
	}
	n := len(b.history())
	s.start()
	if f, ok := errors.AsType[*scaler.Failure](b.order(1)); !ok || f == nil {
		t.Fatal("an order after the end was accepted")
	}
	if len(b.history()) != n {
		t.Fatal("a report after the end")
	}
}

func TestWatchFaultsAreMadeGood(t *testing.T) {
	for name, fault := range map[string]func(s *apiServer){
		"cut":                          func(s *apiServer) { s.dropWatches() },
		"cut, and the history is gone": func(s *apiServer) { s.compact(); s.dropWatches(); s.compact() },
		"held back, then cut": func(s *apiServer) {
			s.do(func() { s.held = true })
			defer s.do(func() { s.held = false })
			s.dropWatches()
		},
		"the wrong way round": func(s *apiServer) { s.do(func() { s.swap = true }) },
	} {
		t.Run(name, func(t *testing.T) {
			s, b, _ := threeReady(t)
			fault(s)
			s.scaleTo("deployments", "web", 1)
			s.change("pods", s.livePods()[0], running("10.0.0.2", false))
			s.change("pods", s.livePods()[0], running("10.0.0.3", true))
			fault(s)
			b.settled("the present state", func(r scaler.Report) bool {
				return len(r.Instances) == 1 && r.Instances[0].Address == "10.0.0.3:8080" && r.Desired == 1 && r.Trouble == nil
			})
			s.scaleTo("deployments", "web", 5)
			b.has(5, 5)
		})
	}
}

func TestALongListComesInPages(t *testing.T) {
	s := newAPIServer(t)
	s.page = 2
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 5)
	b := openOn(t, s, "deployment/web")
	b.has(5, 5)
	if n := len(s.made("list pods")); n != 3 {
		t.Errorf("the pods were listed in %d pages", n)
	}
	b.scale(6)
	b.has(6, 6)
}

// As an API server does from time to time.
func TestAWatchThatEndsGoesOnWhereItEnded(t *testing.T) {
	s, b, _ := threeReady(t)
	for n := range 3 {
		s.scaleTo("deployments", "web", 4+n)
		b.has(4+n, 4+n)
		s.dropWatches()
	}
	if n := len(s.made("list pods")); n != 1 {
		t.Errorf("the pods were listed %d times", n)
	}
}

func TestAnAPIServerThatEndsEveryWatchAtOnceIsNotAskedAllTheTime(t *testing.T) {
	s, b, _ := threeReady(t)
	s.do(func() { s.fleeting = true })
	s.dropWatches()
	time.Sleep(time.Second)
	if n := len(s.made("watch pods")); n > 6 {
		t.Errorf("the pods were watched %d times in a second", n)
	}
	s.scaleTo("deployments", "web", 4)
	b.has(4, 4)
}

func TestWordsThatComeLateDoNotBringAPodBack(t *testing.T) {
	s, b, _ := threeReady(t)
	pods := b.runner.ns.pods
	gone := s.objects["pods"]["web-1-p1"]
	pods.remove(wrap(gone))
	pods.update(wrap(gone))
	older := copyOf(s.objects["pods"]["web-1-p2"])
	older["metadata"].(object)["resourceVersion"] = "1"
	older["status"].(object)["podIP"] = "10.0.0.99"
	pods.update(wrap(older))
	items, _, _ := pods.all()
	if len(items) != 2 || slices.ContainsFunc(items, func(p *pod) bool { return p.name == "web-1-p1" || p.ip == "10.0.0.99" }) {
		t.Fatalf("%+v", items)
	}
}

func TestThrottlingIsPassing(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	var busy atomic.Bool
	busy.Store(true)
	s.refuse = func(call) (int, string) {
		if busy.Load() {
			return http.StatusTooManyRequests, "too many requests, please try again later"
		}
		return 0, ""
	}
	b := openOn(t, s, "deployment/web")
	r := b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	if r.Trouble.Reason != scaler.ReasonPlatform || r.Trouble.Short != "the Kubernetes API is overloaded" {
		t.Fatalf("%+v", r.Trouble)
	}
	busy.Store(false)
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil && len(alive(r)) == 1 })
}

func TestRotatedCredentialsAreReadAgain(t *testing.T) {
	s, b, _ := threeReady(t)
	s.do(func() {
		s.token = "rotated"
		s.writeKubeconfig(b.config)
	})
	b.scale(4)
	s.dropWatches()
	b.has(4, 4)
	b.settled("no trouble", func(r scaler.Report) bool { return r.Trouble == nil })
}

func TestAnAPIServerThatDoesNotAnswerHoldsUpNoOrderForLongerThanItsTime(t *testing.T) {
	s, b, _ := threeReady(t)
	hold := make(chan struct{})
	defer close(hold)
	s.do(func() { s.slow["patch deployments/web/scale"] = hold })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := b.runner.Scale(ctx, scaler.Order{Instances: 4})
	if f, ok := errors.AsType[*scaler.Failure](err); !ok || f.Reason != scaler.ReasonPlatform || f.ForGood {
		t.Fatalf("%v", err)
	}
	if r := b.has(3, 3); r.Trouble != nil {
		t.Fatalf("%v", r.Trouble)
	}
}

func TestRightsThatAreNotNeededAreMissedOnce(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.workload("Deployment", "web", 1)
	s.refuse = func(c call) (int, string) {
		if c.resource == "horizontalpodautoscalers" || c.resource == "events" {
			return http.StatusForbidden, c.resource + ` is forbidden: User "u" cannot list resource "` + c.resource + `"`
		}
		return 0, ""
	}
	b := openOn(t, s, "deployment/web")
	b.has(1, 1)
	b.scale(2)
	b.has(2, 2)
	if n := b.logs.FilterMessageSnippet("not permitted to list horizontalpodautoscalers").Len(); n != 1 {
		t.Fatalf("said %d times", n)
	}
}

func TestAnAPIServerThatDoesNotKnowTheRolesYetIsNoFailureForGood(t *testing.T) {
	s, b, _ := threeReady(t)
	s.stop()
	b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	var begun atomic.Bool
	s.do(func() {
		s.refuse = func(c call) (int, string) {
			if !begun.Load() {
				return http.StatusForbidden, c.resource + ` is forbidden: User "u" cannot ` + c.verb + ` resource "` + c.resource + `"`
			}
			return 0, ""
		}
	})
	s.start()
	b.settled("the refusal", func(r scaler.Report) bool {
		return r.Trouble != nil && r.Trouble.Short == "the Kubernetes API is not complete"
	})
	begun.Store(true)
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil })
	for _, r := range b.history() {
		if r.Trouble != nil && (r.Trouble.ForGood || r.Trouble.Reason != scaler.ReasonPlatform) {
			t.Fatalf("%+v", r.Trouble)
		}
	}
}

func TestARightThatIsTakenAwayIsMissedAndFoundAgain(t *testing.T) {
	s, b, _ := threeReady(t)
	s.do(func() {
		s.refuse = func(c call) (int, string) {
			return http.StatusForbidden, c.resource + ` is forbidden: User "u" cannot ` + c.verb + ` resource "` + c.resource + `"`
		}
	})
	s.dropWatches()
	r := b.settled("the refusal", func(r scaler.Report) bool { return r.Trouble != nil })
	if r.Trouble.Reason != scaler.ReasonForbidden || r.Trouble.ForGood || len(alive(r)) != 3 {
		t.Fatalf("%+v", r)
	}
	s.do(func() { s.refuse = nil })
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil })
}

// As a load balancer does that has no API server left.
func TestAnAPIServerThatBreaksAllConnectionsIsToldOfAtOnce(t *testing.T) {
	s, b, _ := threeReady(t)
	s.stop()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	var breaking sync.WaitGroup
	breaking.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	began := time.Now()
	r := b.settled("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
	f, ok := errors.AsType[*scaler.Failure](b.order(4))
	if !ok || f.Reason != scaler.ReasonPlatform {
		t.Fatalf("%v", f)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(alive(r)) != 3 {
		t.Errorf("%+v", r)
	}
	l.Close()
	breaking.Wait()
	s.start()
	b.settled("its end", func(r scaler.Report) bool { return r.Trouble == nil })
	b.scale(4)
	b.has(4, 4)
}
