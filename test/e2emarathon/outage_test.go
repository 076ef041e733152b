package e2emarathon

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestG10_AChangeOfTheLeaderAndATimeWithoutMarathonTouchNobodyInside(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 3", "scale queue", "concurrency 8"))
	load := w.Load(4, "/sleep?d=20ms")
	w.AwaitReady("web", 1, soon)

	w.sim.Abdicate()
	harness.Eventually(t, soon, func() bool { return w.sim.Leader() >= 0 }, "there is a leader again")
	// A start in the middle of another election.
	w.sim.Abdicate()
	more := w.Load(8, "/sleep?d=20ms")
	w.AwaitReady("web", 2, soon)
	wantAllOK(t, more.Stop())

	for n := range 3 {
		w.sim.CrashNode(n)
	}
	w.awaitWords("web", "Marathon cannot be reached")
	harness.Throughout(t, *outage, func() bool { return w.Service("web").Instances.Ready >= 1 }, "it serves without Marathon")
	for n := range 3 {
		w.sim.StartNode(n)
	}
	harness.Eventually(t, soon, func() bool { return !strings.Contains(w.lastError("web"), "Marathon") }, "Usher has caught up")
	wantAllOK(t, load.Stop())
	w.awaitBooks("web", "/web", soon)
	w.never()
}

func TestEventsThatAreLostLateDoubledAndOutOfOrderChangeNothing(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	for _, f := range []marathonsim.Fault{
		{Kind: marathonsim.FaultEventLost, Rate: 0.6},
		{Kind: marathonsim.FaultEventTwice, Rate: 0.5},
		{Kind: marathonsim.FaultEventLate, Rate: 0.7, Delay: time.Second},
		{Kind: marathonsim.FaultUnknownEvent, Rate: 0.2},
		{Kind: marathonsim.FaultTruncatedFrame, Rate: 0.05},
		{Kind: marathonsim.FaultStale, Rate: 0.3, Delay: 2 * time.Second},
	} {
		w.sim.Inject(f)
	}
	w.Start(w.web("instances 0 3", "concurrency 2", "idle_timeout 500ms", "scale queue {\n\tdown_window 200ms\n}"))
	for range 3 {
		load := w.Load(6, "/sleep?d=10ms")
		w.AwaitReady("web", 3, soon)
		all := load.Stop()
		wantAllOK(t, all)
		wantFrom(t, all, "web.")
		w.awaitTasks("/web", 0)
		w.AwaitState("web", "asleep", soon)
	}
	w.awaitBooks("web", "/web", soon)
	w.never()
}

func TestAPartitionOfAnAgentCutsNoRequest(t *testing.T) {
	w := newTown(t, brisk())
	w.app("/web", "")
	w.Start(w.web("instances 0 2", "concurrency 4", "idle_timeout 1m", "scale queue"))
	load := w.Load(6, "/sleep?d=10ms")
	w.AwaitReady("web", 2, soon)
	held := w.Send(harness.Request{Path: "/hold?gate=" + w.Path("gate")})
	harness.Eventually(t, soon, func() bool {
		return slices.ContainsFunc(w.Journal().Of("begin"), func(e harness.Entry) bool { return strings.HasPrefix(e.Path, "/hold") })
	}, "it is inside")
	lost := ""
	for _, e := range w.Journal().Of("begin") {
		if strings.HasPrefix(e.Path, "/hold") {
			lost = e.Instance
		}
	}
	agent := 0
	for _, task := range w.sim.Tasks() {
		if task.ID == lost {
			agent = slices.IndexFunc(w.sim.Agents(), func(ip string) bool { return slices.Contains([]string{task.Agent, task.IP}, ip) })
		}
	}
	if agent < 0 {
		agent = 0
	}
	w.sim.Partition(agent)
	harness.Eventually(t, soon, func() bool { return len(w.running("/web")) >= 3 }, "Marathon replaces what it has lost")
	w.sim.Heal(agent)
	w.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	wantAllOK(t, load.Stop())
	harness.Eventually(t, 2*soon, func() bool { return len(w.running("/web")) <= 2 }, "what is too much is stopped")
	w.awaitBooks("web", "/web", soon)
	w.never()
}

func TestATokenIsRotatedWhileItServes(t *testing.T) {
	cfg := brisk()
	cfg.Auth.Token = "one"
	w := newTown(t, cfg)
	w.app("/web", "")
	file := w.Path("token")
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	w.Start(harness.Config{Site: "log\n" + harness.Usher("web", w.backend("/web", "token_file "+file), "idle_timeout 300ms", "scale queue")})
	wantOK(t, w.Get("/"))
	w.awaitTasks("/web", 0)
	w.sim.SetAuth(marathonsim.Auth{Token: "two"})
	r := w.Get("/")
	if r.UsherError() != "start_failed" || !strings.Contains(r.Body, "credentials") {
		t.Errorf("status %d, %s: %s", r.Status, r.UsherError(), r.Body)
	}
	write("two")
	harness.Eventually(t, soon, func() bool { return w.Get("/").Status == 200 }, "the new token is used")
}
