package caddymodule

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

func TestProvisionHasNoSideEffects(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := provision(t, site(f.usher("instances 1")))
	c.end()
	if len(f.revs) != 0 {
		t.Error("the backend was opened")
	}
}

func TestG7HeldRequestSurvivesAReload(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	old := start(t, site(f.usher()))
	wait := old.begin("GET", "/", "")
	f.ordered(1)
	f.waiting(1)
	start(t, site(f.usher("concurrency 5")))
	old.cancel() // what Caddy does while requests still run
	f.up()
	if r := wait(); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if n := len(f.revs); n != 1 {
		t.Errorf("%d revisions", n)
	}
}

func TestRequestBeforeTheStartWaitsForIt(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := provision(t, site(f.usher())).serve()
	wait := c.begin("GET", "/", "")
	eventually(t, "the queue", func() bool {
		return c.app.generation.Services[f.name].Reserver.Stats().Waiting == 1
	})
	if err := c.app.Start(); err != nil {
		t.Fatal(err)
	}
	if r := wait(); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestRequestBeforeAStartThatNeverComesIsAnswered(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := provision(t, site(f.usher())).serve()
	wait := c.begin("GET", "/", "")
	eventually(t, "the queue", func() bool {
		return c.app.generation.Services[f.name].Reserver.Stats().Waiting == 1
	})
	c.cancel()
	if r := wait(); r.status != 503 || r.header.Get("Usher-Error") != "shutting_down" {
		t.Errorf("%+v", r)
	}
}

func TestRequestBeforeAStartThatNeverComesIsAnsweredByWhatIsInForce(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	start(t, site(f.usher()))
	c := provision(t, site("usher "+f.name+" {\nbackend test "+f.name+" new\n}\n")).serve()
	wait := c.begin("GET", "/", "")
	f.waiting(1)
	c.cancel()
	f.ordered(1)
	f.up()
	if r := wait(); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestConfigurationThatIsTakenBackLeavesTheOneBeforeInForce(t *testing.T) {
	// Not parallel: the one before is the newest but one.
	f := newFleet(t)
	first := start(t, site(f.usher("concurrency 3", "error_detail full")))
	if r := first.get("/"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	second := start(t, site("usher "+f.name+" {\nbackend test "+f.name+" new\nconcurrency 9\n}\n"))
	s := serving(t, f.name)
	if got := int(*s.Current().Service.Concurrency); got != 9 {
		t.Fatalf("concurrency is %d", got)
	}
	second.end()
	if got := int(*s.Current().Service.Concurrency); got != 3 || !s.Live.Load().DetailFull {
		t.Errorf("concurrency is %d", got)
	}
	if s != serving(t, f.name) {
		t.Error("the service was made anew")
	}
	if r := first.get("/"); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestStartThatFailsLeavesTheOneBeforeInForce(t *testing.T) {
	// Not parallel: the one before is the newest but one.
	f := newFleet(t)
	first := start(t, site(f.usher("concurrency 3")))
	f.set(func() {
		f.openErr = &scaler.Failure{Reason: scaler.ReasonForbidden, ForGood: true, Short: "forbidden"}
	})
	second := provision(t, site("usher "+f.name+" {\nbackend test "+f.name+" new\nconcurrency 9\n}\n"))
	if err := second.app.Start(); err == nil || !strings.Contains(err.Error(), "service "+f.name) {
		t.Errorf("%v", err)
	}
	second.end()
	if got := int(*serving(t, f.name).Current().Service.Concurrency); got != 3 {
		t.Errorf("concurrency is %d", got)
	}
	if r := first.get("/"); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestFailedProvisionReleasesWhatItHad(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(secondFleet(t).usher())) // so that the hub stays
	c := start(t, site(f.usher()))
	for range 3 {
		if _, err := tryProvision(t, jsonApps(`{"ports":"9-1"}`, "")); err == nil {
			t.Fatal("accepted")
		}
		if _, err := tryProvision(t, jsonApps(`{"services":{"`+f.name+`":{"backend":{"type":"nothing"}}}}`, "")); err == nil {
			t.Fatal("accepted")
		}
	}
	h := serving(t, f.name).Hub
	c.end()
	eventually(t, "the end of the service, which only its own configuration had", func() bool { return h.Service(f.name) == nil })
}

func TestRemovedServiceFinishesWhatItHasAndIsForgotten(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	inside, finish := make(chan bool, 1), make(chan bool)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			inside <- true
			<-finish
			_, _ = w.Write([]byte("done"))
		})
	}
	old := start(t, site(f.usher()))
	wait := old.begin("GET", "/", "")
	<-inside
	s := serving(t, f.name)
	start(t, site(secondFleet(t).usher()))
	old.cancel()
	if st := s.Loop.Status(); st.Ready+st.Draining != 1 {
		t.Errorf("%+v", st)
	}
	close(finish)
	if r := wait(); r.body != "done" {
		t.Errorf("%+v", r)
	}
	f.until("the end of the backend", func() bool { return f.closed == 1 })
	eventually(t, "to be forgotten", func() bool { return s.Hub.Service(f.name) == nil })
	s.Outcome(hub.OutcomeGranted, 0)
	s.Outcome(codeAsleep, 0)
	for _, outcome := range []string{hub.OutcomeGranted, codeAsleep} {
		if n := counted(t, f.name, outcome); n != "" {
			t.Errorf("%s is still counted: %v", outcome, n)
		}
	}
}

func TestServiceThatComesBackWhileItRetiresKeepsItsInstances(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	inside, finish := make(chan bool, 2), make(chan bool)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			inside <- true
			<-finish
		})
	}
	keep := start(t, site(secondFleet(t).usher())) // so that the hub stays
	old := start(t, site(f.usher()))
	wait := old.begin("GET", "/", "")
	<-inside
	s := serving(t, f.name)
	old.cancel()
	again := start(t, site(f.usher()))
	if serving(t, f.name) != s {
		t.Error("the service was made anew")
	}
	second := again.begin("GET", "/", "")
	<-inside
	close(finish)
	if a, b := wait(), second(); a.status != 200 || b.status != 200 {
		t.Errorf("%+v %+v", a, b)
	}
	if len(f.revs) != 1 || f.fake.Started() != 1 {
		t.Errorf("%d revisions, %d instances", len(f.revs), f.fake.Started())
	}
	keep.end()
}
