package e2emarathon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestWhatAnOperatorDoesByHand(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 4", "concurrency 4", "idle_timeout 1s", "scale queue {\n\tdown_window 500ms\n}"))
	by := func(patch any) {
		t.Helper()
		harness.Eventually(t, soon, func() bool { return w.sim.UpdateApp("/web", patch, false) == nil }, "the operator gets through")
	}
	// Usher takes over more tasks, and stops them when they are not needed.
	by(map[string]int{"instances": 3})
	w.AwaitReady("web", 3, soon)
	w.awaitTasks("/web", 0)
	w.AwaitState("web", "asleep", soon)

	// An upgrade under load: every request is answered, by either version.
	load := w.Load(3, "/sleep?d=10ms")
	w.AwaitReady("web", 1, soon)
	before := w.running("/web")
	by(map[string]any{"labels": map[string]string{"edited": "yes"}})
	harness.Eventually(t, soon, func() bool {
		now := w.running("/web")
		return len(now) == 1 && !slices.Contains(before, now[0])
	}, "the task is replaced")
	w.awaitBooks("web", "/web", soon)

	// Scaled to zero in the middle of the load, it comes back.
	by(map[string]int{"instances": 0})
	n := load.Len()
	harness.Eventually(t, 2*soon, func() bool { return load.Len() > n+50 }, "it serves again")
	wantFewCut(t, load.Stop(), 2*3)

	// Deleted and made again, it is the new one that serves.
	if err := w.sim.DeleteApp("/web"); err != nil {
		t.Fatal(err)
	}
	w.awaitTasks("/web", 0)
	harness.Eventually(t, soon, func() bool { return strings.Contains(w.lastError("web"), "does not exist") }, "that is noticed")
	w.app("/web", "")
	harness.Eventually(t, soon, func() bool { return w.Get("/").Status == 200 }, "the new app serves")
	w.never()
}

func TestARestartIsMarathonsRollingOne(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 2", "concurrency 2", "idle_timeout 1m", "scale queue"))
	load := w.Load(4, "/sleep?d=10ms")
	w.AwaitReady("web", 2, soon)
	before := w.running("/web")
	w.Post("web/restart", "")
	harness.Eventually(t, soon, func() bool {
		now := w.running("/web")
		return len(now) == 2 && !slices.ContainsFunc(before, func(id string) bool { return slices.Contains(now, id) })
	}, "both are replaced")
	wantFewCut(t, load.Stop(), 4)
	w.awaitBooks("web", "/web", soon)
}

func TestAReloadUnderLoadRestartsNothing(t *testing.T) {
	cfg := brisk()
	cfg.Auth = marathonsim.Auth{User: "usher", Password: "one"}
	w := newTown(t, cfg)
	w.app("/web", "")
	with := func(password string, options ...string) harness.Config {
		return harness.Config{Site: "log\n" + harness.Usher("web", append([]string{w.backend("/web", "basic_auth usher "+password)}, options...)...)}
	}
	w.Start(with("one", "instances 0 2", "scale queue", "concurrency 4"))
	load := w.Load(3, "/sleep?d=5ms")
	w.AwaitReady("web", 1, soon)
	ids := w.running("/web")
	w.MustReload(with("one", "instances 0 3", "scale queue", "concurrency 5"))
	// Another password is another way to the same tasks.
	w.sim.SetAuth(marathonsim.Auth{User: "usher", Password: "two"})
	w.MustReload(with("two", "instances 0 3", "scale queue", "concurrency 5"))
	more := w.Load(9, "/sleep?d=5ms")
	w.AwaitReady("web", 3, soon)
	if now := w.running("/web"); !slices.Contains(now, ids[0]) {
		t.Errorf("%v ran, %v runs", ids, now)
	}
	for _, all := range [][]harness.Response{load.Stop(), more.Stop()} {
		if lost := w.Lost(all); len(lost) > 0 {
			t.Errorf("%d requests were lost, the first with status %d (%s), %v", len(lost), lost[0].Status, lost[0].UsherError(), lost[0].Err)
		}
	}
	w.awaitBooks("web", "/web", soon)
}

func TestAnotherPortIsAnotherRevisionThatTakesOverWithoutACut(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", `,"portDefinitions":[{"port":0,"name":"http"}]`)
	site := func(options ...string) harness.Config {
		return harness.Config{Site: "log\n" + harness.Usher("web", w.backend("/web", options...), "instances 0 2", "concurrency 4", "idle_timeout 1m", "scale queue")}
	}
	w.Start(site())
	load := w.Load(3, "/sleep?d=5ms")
	w.AwaitReady("web", 1, soon)
	before := w.running("/web")
	w.MustReload(site("port_name http"))
	harness.Eventually(t, soon, func() bool {
		now := w.running("/web")
		return len(now) == 1 && !slices.Contains(before, now[0])
	}, "the new revision has taken over")
	if lost := w.Lost(load.Stop()); len(lost) > 0 {
		t.Errorf("%d requests were lost, the first with status %d (%s), %v", len(lost), lost[0].Status, lost[0].UsherError(), lost[0].Err)
	}
	w.awaitBooks("web", "/web", soon)
	w.never()
}

func TestACaddyThatWasKilledFindsItsTasksAgain(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 2", "concurrency 1", "idle_timeout 2s", "scale queue"))
	load := w.Load(2, "/sleep?d=10ms")
	w.AwaitReady("web", 2, soon)
	load.Stop()
	before := w.running("/web")
	w.Kill()
	time.Sleep(50 * time.Millisecond) // whatever is on its way arrives
	if now := w.running("/web"); !slices.Equal(now, before) {
		t.Errorf("%v ran, %v runs without Caddy", before, now)
	}
	w.Start(w.web("instances 0 2", "concurrency 1", "idle_timeout 2s", "scale queue"))
	r := w.Get("/")
	wantOK(t, r)
	if !slices.Contains(before, r.Header.Get("X-Instance")) {
		t.Errorf("%s has answered, %v ran before", r.Header.Get("X-Instance"), before)
	}
	w.AwaitReady("web", 2, soon)
	if now := w.running("/web"); !slices.Equal(now, before) {
		t.Errorf("%v ran, %v runs", before, now)
	}
	w.awaitTasks("/web", 0)
	// Caddy's end is no reason to stop anything.
	wantOK(t, w.Get("/"))
	w.Stop()
	if n := len(w.running("/web")); n != 1 {
		t.Errorf("%d tasks run after Caddy has ended", n)
	}
}
