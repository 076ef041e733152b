package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG7_ReloadEvery200msUnderLoadLosesNothing(t *testing.T) {
	c := newCaddy(t)
	config := func(n int) harness.Config {
		return harness.Config{Site: "log\nheader X-Config " + strconv.Itoa(n) + "\n" +
			"handle /cold* {\n" + harness.Usher("cold", c.Backend("-gate", c.Path("gate")), "concurrency 1") + "\n}\n" +
			"handle {\n" + harness.Usher("web", c.Backend(), "instances 1 2", "concurrency 4") + "\n}"}
	}
	c.Start(config(0))
	c.AwaitReady("web", 1, soon)
	ws := c.WebSocket("/ws", soon)
	stream := c.Stream("/sse?d=20ms")
	held := c.Burst("cold", 10, "/cold")
	load := c.Load(6, "/sleep?d=5ms")
	c.AwaitReady("web", 2, soon)
	started := c.Count()

	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	const reloads = 15
	next := 0
	for n := 1; n <= reloads; n++ {
		<-tick.C
		c.MustReload(config(n))
		if err := ws.Echo("reload " + strconv.Itoa(n)); err != nil {
			t.Fatalf("the websocket, after %d reloads: %v", n, err)
		}
		for range 5 {
			if e, ok := stream.Next(t, soon); !ok || e.Data != strconv.Itoa(next) {
				t.Fatalf("the event stream, after %d reloads: %+v, want event %d", n, e, next)
			}
			next++
		}
	}
	all := load.Stop()
	if lost := c.Lost(all); len(lost) > 0 {
		t.Errorf("%d of %d requests were lost, the first: %+v", len(lost), len(all), lost[0])
	}
	if s := c.Service("cold"); s.Waiting != 10 {
		t.Errorf("%d of 10 held requests wait", s.Waiting)
	}
	c.Open("gate")
	wantAllOK(t, held.Wait(t, soon))
	if j := c.Journal(); j.Starts() != started || len(j.Of("exit")) != 0 {
		t.Errorf("%d processes were started and %d ended, want the %d that ran before", j.Starts(), len(j.Of("exit")), started)
	}
	if s := c.Service("web"); s.ColdStarts > 1 || c.Service("cold").ColdStarts != 1 {
		t.Errorf("cold starts: web %d, cold %d", s.ColdStarts, c.Service("cold").ColdStarts)
	}
	if got := c.Get("/").Header.Get("X-Config"); got != strconv.Itoa(reloads) {
		t.Errorf("configuration %s answers, want %d", got, reloads)
	}
}

func TestG7_CountersSurviveAReload(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	wantOK(t, c.Get("/"))
	before, decisions := c.Service("web"), len(c.Decisions("web"))
	harness.Eventually(t, soon, func() bool {
		return c.Metrics("caddy_usher_")[`caddy_usher_reservations_total{outcome="granted",service="web"}`] == "1"
	}, "the request is counted")
	granted := c.Metrics("caddy_usher_reservations_total")
	c.MustReload(web(c, nil, "max_waiting 7"))
	after := c.Service("web")
	if after.ColdStarts != before.ColdStarts || len(c.Decisions("web")) < decisions || decisions == 0 {
		t.Errorf("cold starts %d, then %d; decisions %d, then %d",
			before.ColdStarts, after.ColdStarts, decisions, len(c.Decisions("web")))
	}
	for series, value := range granted {
		if got := c.Metrics("caddy_usher_reservations_total")[series]; got != value {
			t.Errorf("%s was %s, and is %s after the reload", series, value, got)
		}
	}
}

func TestG7_RaisedConcurrencyLetsTheWaitersIn(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1", "instances 0 1"))
	var held []*harness.Pending
	for range 5 {
		held = append(held, c.Send(harness.Request{Path: hold(c, "gate")}))
	}
	inside(t, c, 1)
	c.AwaitWaiting("web", 4)
	c.MustReload(web(c, nil, "concurrency 5", "instances 0 1"))
	inside(t, c, 5)
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts: another concurrency does not make another revision", n)
	}
	c.Open("gate")
	for _, p := range held {
		wantOK(t, p.Wait(t, soon))
	}
}

func TestG7_RaisedMaximumStartsForTheWaiters(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1", "instances 0 1"))
	var held []*harness.Pending
	for range 3 {
		held = append(held, c.Send(harness.Request{Path: hold(c, "gate")}))
	}
	c.AwaitWaiting("web", 2)
	c.MustReload(web(c, nil, "concurrency 1", "instances 0 3"))
	inside(t, c, 3)
	c.Open("gate")
	for _, p := range held {
		wantOK(t, p.Wait(t, soon))
	}
}

func TestG7_RequestUnderWayKeepsTheOptionsOfItsPlace(t *testing.T) {
	c := newCaddy(t)
	gated := args("-gate", c.Path("gate"))
	c.Start(web(c, gated, "wait_timeout 30s"))
	held := c.Send(harness.Request{})
	c.AwaitWaiting("web", 1)
	c.MustReload(web(c, gated, "wait_timeout 50ms"))
	wantRefusal(t, c.Get("/"), "wait_timeout") // the new time is in force
	if held.Done() {
		t.Fatal("the held request was given up by the new wait_timeout")
	}
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
}

func TestCaddyReloadKeepsTheLine(t *testing.T) {
	c := newCaddy(t)
	gated := args("-gate", c.Path("gate"))
	c.Start(web(c, gated))
	burst := c.Burst("web", 5, "/")
	out, status := c.RunConfig(web(c, gated, "max_waiting 5"), "reload", "--address", c.AdminAddr)
	if status != 0 {
		t.Fatalf("status %d: %s", status, out)
	}
	if s := c.Service("web"); s.Waiting != 5 || s.Config["max_waiting"] != 5.0 {
		t.Errorf("%d waiting, config %v", s.Waiting, s.Config)
	}
	c.Open("gate")
	wantAllOK(t, burst.Wait(t, soon))
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts", n)
	}
}

func TestReloadThatFailsKeepsEverything(t *testing.T) {
	c := newCaddy(t)
	taken, err := net.Listen("tcp", c.SpareAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := []string{"concurrency 1", "instances 0 1"}
	c.Start(web(c, nil, good...))
	first := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	held := c.Send(harness.Request{})
	c.AwaitWaiting("web", 1)
	pid := onlyPID(t, c)

	if err := c.Reload(web(c, nil, "instances 3 2")); err == nil || !strings.Contains(err.Error(), "web") {
		t.Errorf("min > max is loaded, or its message does not name the service: %v", err)
	}
	// This one is good as such, and fails when its listener is opened: after
	// its settings may have been put in force.
	bad := web(c, nil, append(good, "max_waiting 7")...)
	bad.Usher = "service extra {\n" + c.Backend() + "\ninstances 1 1\n}"
	bad.Sites = "http://" + c.SpareAddr + " {\n\trespond never\n}\n"
	if err := c.Reload(bad); err == nil {
		t.Error("a configuration whose port is taken is loaded")
	}
	if s := c.Service("web"); s.Waiting != 1 || s.Slots.InUse != 1 || s.Config["max_waiting"] != 1000.0 {
		t.Errorf("after failed reloads: %d waiting, %d in use, config %v", s.Waiting, s.Slots.InUse, s.Config)
	}
	c.AwaitProcesses(1, soon) // nothing is left of the service that was taken back
	harness.Eventually(t, soon, func() bool { return len(c.Services()) == 1 }, "it is forgotten")
	harness.Throughout(t, 150*time.Millisecond, func() bool { return !held.Done() && onlyPID(t, c) == pid }, "all is as before")
	c.Open("gate")
	wantOK(t, first.Wait(t, soon))
	wantOK(t, held.Wait(t, soon))
}

func TestChangedBackendIsANewRevisionThatTakesOver(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-print", "one"), "overlap on"))
	old := c.Get("/")
	wantOK(t, old)
	inOld := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 2)
	before := c.Service("web").InstanceList[0]

	c.MustReload(web(c, args("-print", "two"), "overlap on"))
	harness.Eventually(t, soon, func() bool {
		r := c.Get("/")
		wantOK(t, r)
		return r.Header.Get("X-Instance") != old.Header.Get("X-Instance")
	}, "the new revision answers")
	c.Open("gate")
	r := inOld.Wait(t, soon)
	wantOK(t, r)
	if r.Header.Get("X-Instance") != old.Header.Get("X-Instance") {
		t.Error("the request inside the old revision was answered by another instance")
	}
	c.AwaitProcesses(1, soon)
	harness.Eventually(t, soon, func() bool {
		list := c.Service("web").InstanceList
		return len(list) == 1 && list[0].Revision != before.Revision
	}, "one instance is listed, of another revision than %q", before.Revision)
}

func TestServiceThatAReloadRemovesFinishesWhatItHas(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	c.MustReload(harness.Config{Site: "respond gone"})
	if r := c.Get("/"); r.Body != "gone" {
		t.Errorf("after the reload: %+v", r)
	}
	harness.Throughout(t, 150*time.Millisecond, func() bool { return c.Count() == 1 }, "the instance is let finish")
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	c.AwaitProcesses(0, soon)
	harness.Eventually(t, soon, func() bool { return c.Admin("GET", "/usher/services/web", "").Status == 404 },
		"the admin API has forgotten it")
	for name := range c.Metrics("caddy_usher_") {
		if strings.Contains(name, `service="web"`) {
			t.Errorf("a series of a service that is gone: %s", name)
		}
	}
}

func TestServiceThatComesBackBeforeItsEndIsKept(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	c.MustReload(harness.Config{Site: "respond gone"})
	c.MustReload(web(c, nil))
	wantOK(t, c.Get("/"))
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	wantOK(t, c.Get("/"))
	c.AwaitProcesses(1, soon)
}

func TestReloadWhileStartsFailKeepsTheLine(t *testing.T) {
	c := newCaddy(t)
	c.Open("broken")
	failing := args("-exit-while", c.Path("broken"))
	c.Start(web(c, failing))
	held := c.Send(harness.Request{})
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("exit")) > 0 }, "a start has failed")
	c.MustReload(web(c, failing, "max_waiting 50"))
	c.Shut("broken")
	wantOK(t, held.Wait(t, soon))
}

func TestValidateAndAdaptHaveNoSideEffects(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "instances 2 2", "idle_timeout off")
	for _, command := range []string{"validate", "adapt"} {
		out, status := c.RunConfig(cfg, command)
		if status != 0 {
			t.Errorf("%s: status %d: %s", command, status, out)
		}
		if command == "adapt" && (!strings.Contains(out, `"handler":"usher"`) || !strings.Contains(out, `"proxy":{}`)) {
			t.Errorf("adapt does not show the handler with its proxy: %s", out)
		}
	}
	if n := c.Journal().Starts(); n != 0 {
		t.Errorf("%d processes were started", n)
	}
	c.Start(cfg)
	c.AwaitReady("web", 2, soon)
	before := fmt.Sprint(c.Processes())
	if out, status := c.RunConfig(cfg, "validate"); status != 0 {
		t.Errorf("validate beside a Caddy that runs: status %d: %s", status, out)
	}
	if after := fmt.Sprint(c.Processes()); after != before {
		t.Errorf("validate touched the processes of the Caddy that runs: %s, then %s", before, after)
	}
}
