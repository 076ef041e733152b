package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// fast is how long an exit may take that has nothing to wait for.
var fast = harness.Slow(2 * time.Second)

func TestG12_KilledCaddyLeavesNoProcess(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-ignore-term"), "instances 2 2"))
	c.AwaitReady("web", 2, soon)
	ws := c.WebSocket("/ws", soon)
	c.AwaitProcesses(2, soon)
	c.Kill()
	c.AwaitProcesses(0, soon)
	ws.Close()
}

func TestG12_WhatForkedAwayEndsWithTheNextCaddy(t *testing.T) {
	for name, flag := range map[string]string{"child beside the instance": "-fork", "instance that left its parent": "-daemonize"} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			cfg := web(c, args(flag), "wait_timeout 1s")
			c.Start(cfg)
			c.Get("/") // whatever comes of it
			harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("fork")) > 0 }, "the instance has forked")
			c.Kill()
			if flag == "-fork" {
				c.AwaitProcesses(1, soon) // the premise: this one got away
			}
			c.Start(cfg)
			c.AwaitProcesses(0, soon)
		})
	}
}

func TestG12_ProcessesOfAnotherCaddyAreLeftAlone(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1 1"))
	c.AwaitReady("web", 1, soon)
	pid := onlyPID(t, c)

	other := harness.New(t)
	other.Start(web(other, args("-fork"), "instances 1 1"))
	other.AwaitReady("web", 1, soon)
	other.Kill()
	other.AwaitProcesses(1, soon)
	other.Start(web(other, nil))
	other.AwaitProcesses(0, soon) // it has ended its own
	if got := onlyPID(t, c); got != pid {
		t.Errorf("process %d of the first Caddy was ended, %d runs now", pid, got)
	}
	wantOK(t, c.Get("/"))
}

func TestStopWithNothingHeldEndsTheProcesses(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "instances 2 2", "drain_timeout 30s")
	cfg.Grace = "0"
	c.Start(cfg)
	c.AwaitReady("web", 2, soon)
	wantOK(t, c.Get("/"))
	if took := c.Stop(); took > fast {
		t.Errorf("it took %s", took)
	}
	if n := c.Count(); n != 0 {
		t.Errorf("%d processes run after the exit", n)
	}
	if n := len(c.Journal().Of("term")); n != 2 {
		t.Errorf("%d of 2 instances got the stop signal", n)
	}
}

func TestStopKillsWhatIgnoresTheSignalAfterStopTimeout(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-ignore-term"), "instances 1 1", "stop_timeout 300ms"))
	c.AwaitReady("web", 1, soon)
	if took := c.Stop(); took < 300*time.Millisecond || took > fast {
		t.Errorf("it took %s, with a stop_timeout of 300ms", took)
	}
	if n := c.Count(); n != 0 {
		t.Errorf("%d processes run after the exit", n)
	}
}

func TestStopTellsWhoWaitsAndKeepsNobody(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, args("-gate", c.Path("never")), "wait_timeout 60s")
	cfg.Grace = "0"
	c.Start(cfg)
	burst := c.Burst("web", 20, "/")
	unfinished := c.Dial()
	unfinished.SendHead("POST", "/", "Content-Length: 1000000")
	unfinished.Send("half")
	c.AwaitWaiting("web", 21)
	if took := c.Stop(); took > fast {
		t.Errorf("it took %s", took)
	}
	for _, r := range append(burst.Wait(t, soon), unfinished.Receive(soon)) {
		wantRefusal(t, r, "shutting_down")
	}
	if n := c.Count(); n != 0 {
		t.Errorf("%d processes run after the exit", n)
	}
}

func TestStopLetsThoseInsideFinish(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "concurrency 1", "instances 0 1")
	cfg.Grace = "10s"
	c.Start(cfg)
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	waits := c.Send(harness.Request{})
	c.AwaitWaiting("web", 1)
	c.Signal(syscall.SIGTERM)
	wantRefusal(t, waits.Wait(t, soon), "shutting_down")
	harness.Throughout(t, 200*time.Millisecond, func() bool { return c.Running() && !held.Done() && c.Count() == 1 },
		"the request inside is not cut off")
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	c.AwaitExit(fast)
	if c.ExitStatus() != 0 || c.Count() != 0 {
		t.Errorf("exit status %d, %d processes", c.ExitStatus(), c.Count())
	}
}

func TestStopWithOpenStreamsTakesNoLongerThanTheGracePeriod(t *testing.T) {
	c := newCaddy(t)
	// The instance itself waits for the end of its stream, so it is killed.
	cfg := web(c, nil, "drain_timeout 30s", "stop_timeout 300ms")
	cfg.Grace = "500ms"
	c.Start(cfg)
	ws := c.WebSocket("/ws", soon)
	stream := c.Stream("/sse")
	stream.Next(t, soon)
	if took := c.Stop(); took > fast {
		t.Errorf("it took %s", took)
	}
	if err := ws.AwaitEnd(soon); err != nil {
		t.Errorf("the websocket is still open: %v", err)
	}
	if n := c.Count(); n != 0 {
		t.Errorf("%d processes run after the exit", n)
	}
}

func TestStopWithAnOpenWebsocketDoesNotWaitForIt(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil)
	cfg.Grace = "0"
	c.Start(cfg)
	ws := c.WebSocket("/ws", soon)
	if err := ws.Echo("in"); err != nil {
		t.Fatal(err)
	}
	// A taken-over connection is none of those that an exit waits for.
	if took := c.Stop(); took > fast {
		t.Errorf("it took %s", took)
	}
}

func TestCaddyStopWithAnOpenAdminEventStreamIsFastAndSaysBye(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1 1"))
	events := []*harness.EventStream{c.Events(), c.Events()}
	start := time.Now()
	out, status := c.Run("stop", "--address", c.AdminAddr)
	if took := time.Since(start); status != 0 || took > fast {
		t.Errorf("caddy stop: status %d after %s: %s", status, took, out)
	}
	c.AwaitExit(fast)
	if c.ExitStatus() != 0 {
		t.Errorf("exit status %d", c.ExitStatus())
	}
	for _, e := range events {
		wantBye(t, e)
	}
}

func TestReloadWithAnOpenAdminEventStreamIsFastAndSaysBye(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	events := c.Events()
	start := time.Now()
	c.MustReload(web(c, nil, "max_waiting 5"))
	if took := time.Since(start); took > fast {
		t.Errorf("the reload took %s", took)
	}
	wantBye(t, events)
	c.Events().Close() // clients reconnect
}

// wantBye reads on until the event bye, after which the stream ends.
func wantBye(t *testing.T, e *harness.EventStream) {
	t.Helper()
	e.Until(t, soon, func(e harness.Event) bool { return e.Name == "bye" })
	if e, ok := e.Next(t, soon); ok {
		t.Errorf("an event after bye: %+v", e)
	}
}

func TestOnExitKeepLeavesTheProcesses(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "instances 1 1")
	cfg.Usher = "on_exit keep"
	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	pid := onlyPID(t, c)
	c.Stop()
	if got := onlyPID(t, c); got != pid {
		t.Errorf("process %d runs, want the %d of before the exit", got, pid)
	}
	c.Start(web(c, args("-print", "another revision")))
	c.AwaitProcesses(0, soon)
}

func TestSuspensionSurvivesReloadAndRestart(t *testing.T) {
	c := newCaddy(t)
	cfg := web(c, nil, "instances 1 1")
	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	c.Post("web/suspend", `{"reason":"moving house"}`)
	c.AwaitProcesses(0, soon)
	c.MustReload(web(c, nil, "instances 1 2"))
	wantRefusal(t, c.Get("/"), "suspended")
	c.Stop()
	c.Start(cfg)
	r, p := askProblem(t, c, "/")
	wantRefusal(t, r, "suspended")
	if !strings.Contains(p.Detail, "moving house") {
		t.Errorf("the operator's words are not in %q", p.Detail)
	}
	c.Kill()
	c.Start(cfg)
	wantRefusal(t, c.Get("/"), "suspended")
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts, want the one before the suspension", n)
	}
	c.Post("web/resume", "")
	wantOK(t, c.Get("/"))
	c.Stop()
	c.Start(cfg)
	wantOK(t, c.Get("/")) // a resumption is remembered too
	if state := c.Service("web").State; state != "awake" {
		t.Errorf("state %s", state)
	}
}
