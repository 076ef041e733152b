package caddymodule

import (
	"errors"
	"net/http"
	"strings"
	"testing"

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
	eventually(t, "the line", func() bool {
		c.app.hub.mu.Lock()
		defer c.app.hub.mu.Unlock()
		return c.app.hub.services[f.name].reserver.Stats().Waiting == 1
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
	eventually(t, "the line", func() bool {
		c.app.hub.mu.Lock()
		defer c.app.hub.mu.Unlock()
		return c.app.hub.services[f.name].reserver.Stats().Waiting == 1
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
	if got := int(*s.current().service.Concurrency); got != 9 {
		t.Fatalf("concurrency is %d", got)
	}
	second.end()
	if got := int(*s.current().service.Concurrency); got != 3 || !s.live.Load().detailFull {
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
	if got := int(*serving(t, f.name).current().service.Concurrency); got != 3 {
		t.Errorf("concurrency is %d", got)
	}
	if r := first.get("/"); r.status != 200 {
		t.Errorf("%+v", r)
	}
}

func TestFailedProvisionReleasesWhatItHad(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher()))
	for range 3 {
		if _, err := tryProvision(t, jsonApps(`{"ports":"9-1"}`, "")); err == nil {
			t.Fatal("accepted")
		}
		if _, err := tryProvision(t, jsonApps(`{"services":{"`+f.name+`":{"backend":{"type":"nothing"}}}}`, "")); err == nil {
			t.Fatal("accepted")
		}
	}
	s := serving(t, f.name)
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.users != 1 || s.retired {
		t.Errorf("%d users, retired: %v", s.users, s.retired)
	}
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
	if st := s.loop.Status(); st.Ready+st.Draining != 1 {
		t.Errorf("%+v", st)
	}
	close(finish)
	if r := wait(); r.body != "done" {
		t.Errorf("%+v", r)
	}
	f.until("the end of the backend", func() bool { return f.closed == 1 })
	eventually(t, "to be forgotten", func() bool { return s.hub.service(f.name) == nil })
	s.outcome(outcomeGranted, 0)
	s.outcome(codeAsleep, 0)
	(*observer)(s).Decided(scaler.Decision{To: 1})
	for _, outcome := range []string{outcomeGranted, codeAsleep} {
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
	if len(f.revs) != 1 || f.made != 1 {
		t.Errorf("%d revisions, %d instances", len(f.revs), f.made)
	}
	keep.end()
}

func TestSeriesOfAServiceInANewHubOutliveTheOldOne(t *testing.T) {
	// Not parallel: it is about hubs, of which there is one.
	old := newHub()
	name := serviceFor(t)
	old.services[name] = newService(old, name)
	h := newHub()
	before := latestHub.Swap(h)
	defer latestHub.Store(before)
	s := newService(h, name)
	s.active = true
	h.services[name] = s
	s.outcome(outcomeGranted, 0)
	old.mu.Lock()
	old.forget(old.services[name])
	old.mu.Unlock()
	if n := counted(t, name, outcomeGranted); n != "1" {
		t.Errorf("counted: %v", n)
	}
	h.mu.Lock()
	h.forget(s)
	h.mu.Unlock()
	if n := counted(t, name, outcomeGranted); n != "" {
		t.Errorf("still counted: %v", n)
	}
}

func TestSuspensionIsStoredBeforeItIsSaid(t *testing.T) {
	t.Parallel()
	disk := &memory{files: make(map[string][]byte)}
	private := privateHub(t, disk)
	disk.setFail(errDisk)
	p := private.services["web"]
	if err := private.suspend(t.Context(), p, "why"); !errors.Is(err, errDisk) || p.loop.Status().State == scaler.Suspended {
		t.Errorf("%v, %s", err, p.loop.Status().State)
	}
	disk.setFail(nil)
	if err := private.suspend(t.Context(), p, "why"); err != nil || p.loop.Status().State != scaler.Suspended {
		t.Errorf("%v, %s", err, p.loop.Status().State)
	}
	// A restart: a new hub with the same storage.
	restarted := privateHub(t, disk)
	if r := restarted.services["web"]; r.loop.Status().State != scaler.Suspended || r.suspension.Reason != "why" {
		t.Errorf("after a restart: %s", r.loop.Status().State)
	}
	disk.setFail(errDisk)
	if err := private.resume(t.Context(), p); !errors.Is(err, errDisk) || p.loop.Status().State != scaler.Suspended {
		t.Errorf("%v, %s", err, p.loop.Status().State)
	}
	disk.setFail(nil)
	for range 2 { // what is not stored need not be deleted
		if err := private.resume(t.Context(), p); err != nil || p.loop.Status().State == scaler.Suspended {
			t.Errorf("%v, %s", err, p.loop.Status().State)
		}
	}
}

// privateHub is a hub of the test's own, with one service, web, and a
// configuration in force that uses the storage.
func privateHub(t *testing.T, disk *memory) *hub {
	t.Helper()
	h := newHub()
	s := h.acquire("web")
	g := &generation{storage: disk, services: map[string]*service{"web": s}, logger: h.logs.logger}
	h.mu.Lock()
	h.readSuspensions(g)
	s.active = true
	h.generations = append(h.generations, g)
	h.mu.Unlock()
	t.Cleanup(func() { _ = h.closeAll() })
	return h
}

func TestSuspensionThatCannotBeReadHoldsAllTheSame(t *testing.T) {
	t.Parallel()
	disk := &memory{files: map[string][]byte{suspensionKey("web"): []byte("{"), suspensionKey("other"): []byte("{}")}}
	if s := privateHub(t, disk).services["web"]; s.loop.Status().State != scaler.Suspended {
		t.Errorf("%s", s.loop.Status().State)
	}
}

func TestStorageThatFailsAtLoadSuspendsNothing(t *testing.T) {
	t.Parallel()
	disk := &memory{files: map[string][]byte{suspensionKey("web"): []byte("{}")}, fail: errDisk}
	if s := privateHub(t, disk).services["web"]; s.loop.Status().State == scaler.Suspended {
		t.Error("suspended")
	}
}

func TestSuspendingWithoutAConfigurationInForceIsAnError(t *testing.T) {
	t.Parallel()
	h := newHub()
	s := h.acquire("web")
	if h.suspend(t.Context(), s, "x") == nil || h.resume(t.Context(), s) == nil {
		t.Error("no error")
	}
	_ = h.closeAll()
}
