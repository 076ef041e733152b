package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestOldRevisionServesUntilTheNewOneIsReadyAndThenTheLineMoves(t *testing.T) {
	c := newCaddy(t)
	options := []string{"instances 0 1", "overlap on", "concurrency 1", "drain_timeout 30s"}
	c.Start(web(c, nil, options...))
	first := c.Get("/")
	wantOK(t, first)
	old := first.Header.Get("X-Instance")

	c.MustReload(web(c, args("-gate", c.Path("listen")), options...))
	c.AwaitProcesses(2, soon) // the new one is on its way, beside the old one
	for range 20 {
		r := c.Get("/")
		wantOK(t, r)
		if r.Header.Get("X-Instance") != old {
			t.Fatal("the new revision answers before it listens")
		}
	}
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 22)
	waiting := c.Burst("web", 5, "/")
	if s := c.Service("web"); s.State != "awake" || s.Instances.Ready != 1 || s.Instances.Starting != 1 {
		t.Errorf("%+v", s)
	}

	c.Open("listen")
	all := waiting.Wait(t, soon)
	wantAllOK(t, all)
	for _, r := range all {
		if r.Header.Get("X-Instance") == old {
			t.Error("one of the line was answered by the old revision, whose only slot was taken")
		}
	}
	if n := len(c.Journal().Of("term")); n != 0 || held.Done() {
		t.Errorf("%d stop signals, and the request inside is done: %v", n, held.Done())
	}
	c.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	if r.Header.Get("X-Instance") != old {
		t.Error("the request inside the old revision was answered by another")
	}
	c.AwaitProcesses(1, soon)
	if r := c.Get("/"); r.Header.Get("X-Instance") == old || r.Status != 200 {
		t.Errorf("after all: %+v", r)
	}
	if j := c.Journal(); len(j.Of("term")) != 1 || j.MaxInside() != 1 {
		t.Errorf("%d stop signals, %d inside at most", len(j.Of("term")), j.MaxInside())
	}
}

func TestNewRevisionThatCannotStartLeavesTheOldOneAndSaysSo(t *testing.T) {
	for name, test := range map[string]struct {
		next func(*harness.Caddy) harness.Config
		says string
	}{
		"it exits": {
			func(c *harness.Caddy) harness.Config { return web(c, args("-exit-code", "7"), "overlap on") }, "exit status 7",
		},
		"it never listens": {
			func(c *harness.Caddy) harness.Config {
				return web(c, args("-never-listen"), "overlap on", "start_timeout 300ms", "stop_timeout 300ms")
			}, "not ready within 300ms",
		},
		"it cannot be executed": {
			func(c *harness.Caddy) harness.Config {
				// There is no such interpreter, which shows when it is started.
				script := c.Path("script")
				if err := os.WriteFile(script, []byte("#!/nonexistent/interpreter\n"), 0o755); err != nil {
					t.Fatal(err)
				}
				return harness.Config{Site: "log\n" + harness.Usher("web", c.Command("", script), "overlap on")}
			}, "interpreter does not exist",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			good := web(c, nil, "overlap on")
			c.Start(good)
			first := c.Get("/")
			wantOK(t, first)
			pid := onlyPID(t, c)
			oldServes := func() {
				t.Helper()
				r := c.Get("/")
				wantOK(t, r)
				if r.Header.Get("X-Instance") != first.Header.Get("X-Instance") {
					t.Error("another instance answers")
				}
			}

			c.MustReload(test.next(c))
			harness.Eventually(t, soon, func() bool {
				oldServes()
				return strings.Contains(fmt.Sprint(c.Service("web").LastError), test.says)
			}, "last_error says %q", test.says)
			harness.Eventually(t, soon, func() bool {
				oldServes()
				for _, e := range c.Log() {
					if e.Logger == "usher" && e.Level == "warn" && strings.Contains(e.Msg, "the earlier revision keeps serving") && strings.Contains(fmt.Sprint(e.Fields["error"]), test.says) {
						return true
					}
				}
				return false
			}, "the log says %q", test.says)
			// It is tried again and again, which does the old one no harm.
			harness.Throughout(t, 1500*time.Millisecond, func() bool { oldServes(); return c.Service("web").State == "awake" }, "it serves")
			if len(c.Journal().Of("term")) > 0 && name != "it never listens" {
				t.Error("something was stopped")
			}

			// Going back finds it as it was.
			c.MustReload(good)
			oldServes()
			harness.Eventually(t, soon, func() bool { return c.Count() == 1 && c.Service("web").LastError == nil }, "all is as before")
			if got := onlyPID(t, c); got != pid {
				t.Errorf("process %d runs, want %d", got, pid)
			}
		})
	}
}
