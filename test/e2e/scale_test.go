package e2e

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG6_ScalingDownStopsTheIdleInstancesAndNotTheBusyOne(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 3", "concurrency 1", "scale queue {\n\tdown_window 300ms\n}"))
	var held []*harness.Pending
	for i, gate := range []string{"a", "b", "c"} {
		held = append(held, c.Send(harness.Request{Path: hold(c, gate)}))
		inside(t, c, i+1)
	}
	c.Open("a")
	c.Open("b")
	wantOK(t, held[0].Wait(t, soon))
	wantOK(t, held[1].Wait(t, soon))
	c.AwaitProcesses(1, soon)
	pid := onlyPID(t, c)
	c.Open("c")
	r := held[2].Wait(t, soon)
	wantOK(t, r)
	if r.Header.Get("X-Pid") != strconv.Itoa(pid) {
		t.Errorf("process %d was kept, %s had the request", pid, r.Header.Get("X-Pid"))
	}
	if n := len(c.Journal().Of("exit")); n != 2 {
		t.Errorf("%d instances ended in order, want 2", n)
	}
}

func TestDrainingInstanceFinishesWhatItHasAndTakesNothingNew(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 2", "concurrency 1"))
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	id := c.Service("web").InstanceList[0].ID
	if r := c.Admin("DELETE", "/usher/services/web/instances/"+id, ""); r.Status/100 != 2 {
		t.Fatalf("DELETE: %d %s", r.Status, r.Body)
	}
	harness.Eventually(t, soon, func() bool { return c.Service("web").Instances.Draining == 1 }, "the instance is draining")
	other := c.Get("/")
	wantOK(t, other)
	if other.Header.Get("X-Instance") == id {
		t.Error("a draining instance has taken a request")
	}
	c.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	if r.Header.Get("X-Instance") != id {
		t.Errorf("answered by %s", r.Header.Get("X-Instance"))
	}
	c.AwaitProcesses(1, soon)
}

func TestDrainTimeoutEndsWhatDoesNotFinish(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-ignore-term"), "drain_timeout 300ms", "stop_timeout 200ms"))
	held := c.Send(harness.Request{Path: hold(c, "never")})
	inside(t, c, 1)
	start := time.Now()
	c.Post("web/sleep", "")
	c.AwaitProcesses(0, soon)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("the instance was stopped after %s, with a drain_timeout of 300ms", took)
	}
	// The instance has seen the request: the client must not be told to resend.
	if r := held.Wait(t, soon); r.Status == 200 || r.Status == 503 {
		t.Errorf("the request inside was answered with %d", r.Status)
	}
	harness.Eventually(t, soon, func() bool { return c.Service("web").Slots.InUse == 0 }, "its slot is released")
}

func TestIdleIsCountedFromTheLastRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "idle_timeout 600ms", "scale queue"))
	wantOK(t, c.Get("/"))
	pid := onlyPID(t, c)
	// Requests with pauses that are shorter than idle_timeout, for longer.
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range 6 {
		<-tick.C
		wantOK(t, c.Get("/"))
		if got := onlyPID(t, c); got != pid {
			t.Fatalf("process %d instead of %d", got, pid)
		}
	}
	last := time.Now()
	c.AwaitProcesses(0, soon)
	if idle := time.Since(last); idle < 500*time.Millisecond {
		t.Errorf("the instance was stopped %s after the last request", idle)
	}
}

func TestRequestsThatDoNotMatchWakeNeitherWakeNorKeepAwake(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: "@app path /app*\n" + webBlock(c, nil, "wake @app", "idle_timeout 500ms", "scale queue")})
	wantRefusal(t, c.Get("/metrics"), "asleep")
	if n := c.Journal().Starts(); n != 0 {
		t.Fatalf("%d starts for a request that does not match", n)
	}
	wantOK(t, c.Get("/app"))
	wantOK(t, c.Get("/metrics")) // served while an instance is ready
	// Asked without a pause, it goes to sleep all the same.
	harness.Eventually(t, soon, func() bool { return c.Get("/metrics").UsherError() == "asleep" }, "the service sleeps")
	c.AwaitProcesses(0, soon)
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts", n)
	}
}

func TestStartLimitLetsOneServiceStartAfterTheOther(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{
		Usher: "start_limit 1",
		Site: "handle /b* {\n" + harness.Usher("b", c.Backend("-gate", c.Path("gate"))) + "\n}\n" +
			"handle {\n" + harness.Usher("a", c.Backend("-gate", c.Path("gate")), "instances 0 3", "concurrency 1", "scale queue") + "\n}",
	})
	a := c.Burst("a", 3, "/")
	harness.Eventually(t, soon, func() bool { return c.Journal().Starts() == 1 }, "the first start")
	b := c.Burst("b", 1, "/b")
	harness.Throughout(t, 200*time.Millisecond, func() bool { return c.Journal().Starts() == 1 }, "one start is in progress")
	c.Open("gate")
	wantAllOK(t, a.Wait(t, soon))
	wantAllOK(t, b.Wait(t, soon))
	// The first start of b goes before further ones of a.
	starts := c.Journal().Of("start")
	for _, e := range c.Journal().Of("begin") {
		if e.Path == "/b" && len(starts) > 1 && e.PID != starts[1].PID {
			t.Errorf("the second start was not that of the service without an instance")
		}
	}
}

func TestG9_KilledInstancesUnderLoadCostOnlyWhatWasInside(t *testing.T) {
	c := newCaddy(t)
	const clients = 4
	c.Start(web(c, nil, "instances 2 2", "concurrency 10"))
	c.AwaitReady("web", 2, soon)
	load := c.Load(clients, "/sleep?d=3ms")
	const kills = 2 // each makes the next start wait longer
	for range kills {
		before := load.Len()
		harness.Eventually(t, soon, func() bool { return load.Len() > before+50 }, "the load goes on")
		procs := c.Processes()
		if len(procs) == 0 {
			t.Fatal("no process runs")
		}
		procs[0].Kill()
		c.AwaitReady("web", 2, harness.Slow(10*time.Second))
	}
	all := load.Stop()
	bad := harness.Failed(all)
	if len(bad) > kills*clients {
		t.Errorf("%d of %d failed, at most %d were inside when an instance was killed", len(bad), len(all), kills*clients)
	}
	for _, r := range bad {
		if r.Err == nil && r.Status != 502 {
			t.Errorf("a request that an instance may have seen got %d %s", r.Status, r.UsherError())
		}
	}
}

func TestG9_RefusedConnectionIsTriedOnAnotherInstance(t *testing.T) {
	c := newCaddy(t)
	// Without kept connections every request needs a new one.
	c.Start(web(c, nil, "instances 2 2", "transport http {\n\tkeepalive off\n}"))
	c.AwaitReady("web", 2, soon)
	deaf := c.Get("/deafen")
	wantOK(t, deaf)
	for range 10 {
		r := c.Do(harness.Request{Method: "POST", Path: "/echo", Body: strings.NewReader("whole")})
		wantOK(t, r)
		if r.Body != "whole" || r.Header.Get("X-Instance") == deaf.Header.Get("X-Instance") {
			t.Errorf("body %q, from the instance %s that refuses connections", r.Body, r.Header.Get("X-Instance"))
		}
	}
	if s := c.Service("web"); s.Instances.Ejected != 1 || s.Instances.Ready != 1 {
		t.Errorf("instances %+v, want one ejected", s.Instances)
	}
}

func TestG9_RefusedOnlyInstanceKeepsThePlaceOfItsRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 1", "concurrency 1", "start_timeout 1s", "transport http {\n\tkeepalive off\n}"))
	wantOK(t, c.Get("/deafen"))
	// There is no other instance: the request waits until the deaf one is
	// replaced, and goes before later requests.
	first := c.Send(harness.Request{Method: "POST", Path: "/", Header: http.Header{"X-Seq": {"first"}}})
	harness.Eventually(t, soon, func() bool { return c.Service("web").Instances.Ejected == 1 }, "the deaf instance is ejected")
	burst := c.Burst("web", 3, "/")
	wantOK(t, first.Wait(t, harness.Slow(10*time.Second)))
	wantAllOK(t, burst.Wait(t, soon))
	if got := c.Journal().Seqs()[1:]; !slices.Equal(got, []string{"first", "0", "1", "2"}) {
		t.Errorf("order of entering: %v", got)
	}
}

func TestRequestsAfterAKillFindTheNextInstance(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 1", "transport http {\n\tkeepalive off\n}"))
	wantOK(t, c.Get("/"))
	for range 2 {
		address := c.Service("web").InstanceList[0].Address
		for _, p := range c.Processes() {
			p.Kill()
		}
		// Until its socket is closed, a process that dies can be connected to.
		harness.Eventually(t, soon, func() bool { return !harness.Listening(address) }, "the socket of the killed instance is closed")
		wantOK(t, c.Do(harness.Request{Method: "POST", Path: "/echo", Body: strings.NewReader("whole")}))
	}
}

func TestG9_RequestThatAnInstanceMayHaveSeenIsNotSentAgain(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 2", "wait_timeout 2s"))
	c.AwaitReady("web", 2, soon)
	r := c.Do(harness.Request{Method: "POST", Path: "/reset"})
	if r.Status != 502 || r.UsherError() != "" {
		t.Errorf("status %d, Usher-Error %q", r.Status, r.UsherError())
	}
	if n := len(c.Journal().Of("begin")); n != 1 {
		t.Errorf("the request entered %d times", n)
	}
}

func TestG9_ConfiguredRetryRulesSendItAgain(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 2", "wait_timeout 2s", "lb_retries 1", "lb_retry_match {\n\tmethod POST\n}"))
	c.AwaitReady("web", 2, soon)
	r := c.Do(harness.Request{Method: "POST", Path: "/reset"})
	if r.Status != 502 || r.UsherError() != "" {
		t.Errorf("status %d, Usher-Error %q", r.Status, r.UsherError())
	}
	if n := len(c.Journal().Of("begin")); n != 2 {
		t.Errorf("the request entered %d times, want a second try", n)
	}
}

func TestInstanceThatFailsThreeTimesInARowIsEjectedAndComesBack(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1 1"))
	c.AwaitReady("web", 1, soon)
	events := c.Events()
	for range 3 {
		if r := c.Do(harness.Request{Method: "POST", Path: "/reset"}); r.Status != 502 {
			t.Errorf("status %d", r.Status)
		}
	}
	events.Until(t, soon, func(e harness.Event) bool { return strings.Contains(e.Data, "ejected") })
	wantOK(t, c.Get("/")) // it is probed again, and passes
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts", n)
	}
}
