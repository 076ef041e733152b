//go:build linux

package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG14ThreeCaddysShareOneSlot(t *testing.T) {
	w := newTown(t, 3, "", "instances 0 1", "concurrency 1", "scale queue")
	w.start()
	for range 5 {
		wantAllOK(t, w.each("/sleep?d=20ms"))
	}
	w.wantNoMoreThan(1)
	if got := w.caddys[w.leader()].Metrics("caddy_usher_handover_seconds_count"); len(got) != 1 {
		t.Errorf("slots were handed over, and the metrics say %v", got)
	}
}

func TestG14ThreeCaddysShareInstancesUnderLoad(t *testing.T) {
	w := newTown(t, 3, "", "instances 0 3", "concurrency 2", "scale queue", "max_waiting 2000", "idle_timeout 2s")
	w.start()
	var loads []*harness.Load
	for _, c := range w.caddys {
		loads = append(loads, c.Load(8, "/sleep?d=20ms"))
	}
	time.Sleep(harness.Slow(5 * time.Second))
	for _, l := range loads {
		all := l.Stop()
		wantAllOK(t, all)
		if len(all) < 50 {
			t.Errorf("one of them served %d requests only", len(all))
		}
	}
	w.wantNoMoreThan(2)
	// And back to zero.
	for _, c := range w.caddys {
		c.AwaitState("web", "asleep", soon)
	}
	harness.Eventually(t, soon, func() bool { return len(w.sim.Tasks()) == 0 }, "no task is left")
}

// short are times that let a test see the end of a lease.
const short = "\tlease 1s\n\tlost_after 3s"

// busy has a load on some Caddys until the returned function is called, which
// returns the answers.
func busy(caddys []*harness.Caddy, clients int, path string) (stop func() []harness.Response) {
	var loads []*harness.Load
	for _, c := range caddys {
		loads = append(loads, c.Load(clients, path))
	}
	return func() (all []harness.Response) {
		for _, l := range loads {
			all = append(all, l.Stop()...)
		}
		return all
	}
}

func without(all []*harness.Caddy, k int) (rest []*harness.Caddy) {
	for j, c := range all {
		if j != k {
			rest = append(rest, c)
		}
	}
	return rest
}

func TestG14KilledCaddys(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(map[bool]string{true: "the leader", false: "a member"}[leads], func(t *testing.T) {
			w := newTown(t, 3, short, "instances 1 2", "concurrency 1", "scale queue", "max_waiting 2000")
			w.start()
			wantAllOK(t, w.each("/"))
			k := w.leader()
			if !leads {
				k = (k + 1) % 3
			}
			rest := without(w.caddys, k)
			own := busy([]*harness.Caddy{w.caddys[k]}, 4, "/sleep?d=10ms")
			stop := busy(rest, 4, "/sleep?d=10ms")
			time.Sleep(time.Second)
			w.kill(k)
			_ = own() // they end with it
			before := len(w.caddys[0].Journal().Of("begin"))
			harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > before+100 }, "the others go on")
			wantAllOK(t, stop())
			w.wantNoMoreThan(1)
			w.leader()
		})
	}
}

func TestG14ACaddyThatLeavesCostsNoRequest(t *testing.T) {
	w := newTown(t, 3, "", "instances 1 2", "concurrency 1", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	k := w.leader()
	stop := busy(without(w.caddys, k), 4, "/sleep?d=10ms")
	time.Sleep(time.Second)
	w.stop(k)
	if !w.caddys[k].Logged("has left its cluster") {
		t.Error("it did not say that it leaves")
	}
	before := len(w.caddys[0].Journal().Of("begin"))
	harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > before+100 }, "the others go on")
	wantAllOK(t, stop())
	w.wantNoMoreThan(1)
}

func TestG14OneThatStandsStillForLongerThanItsLeaseAndIsBack(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 2", "concurrency 1", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	k := w.leader()
	stop := busy(w.caddys, 3, "/sleep?d=10ms")
	for range 2 {
		time.Sleep(time.Second)
		w.freeze(k)
		time.Sleep(2500 * time.Millisecond) // its lease ends, and its requests may stay for more
		w.thaw(k)
	}
	time.Sleep(2 * time.Second)
	wantAllOK(t, stop())
	w.wantNoMoreThan(1)
}

func TestG14WithoutEtcdAllServeOnAndAfterwardsToo(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 2", "concurrency 1", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	stop := busy(w.caddys, 3, "/sleep?d=10ms")
	w.etcd.Stop()
	time.Sleep(5 * time.Second)
	before := len(w.caddys[0].Journal().Of("begin"))
	harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > before+100 }, "they go on")
	w.etcd.Start()
	time.Sleep(2 * time.Second)
	wantAllOK(t, stop())
	w.wantNoMoreThan(1)
	for k, c := range w.caddys {
		if !c.Logged("the coordinator can be used again") && c.Logged("the coordinator cannot be used") {
			t.Errorf("%d did not find etcd again", k)
		}
	}
}

func TestTheClusterIsShown(t *testing.T) {
	w := newTown(t, 2, short, "instances 1 1", "concurrency 3", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	k := w.leader()
	out, status := w.caddys[1-k].Run("usher", "cluster", "--address", w.caddys[1-k].AdminAddr)
	if status != 0 || !strings.Contains(out, w.peers[k]) || !strings.Contains(out, "leads") || !strings.Contains(out, "web") {
		t.Errorf("status %d:\n%s", status, out)
	}
	for _, member := range []string{w.peers[0], w.peers[1], "127.0.0.1:1"} {
		if out, status := w.caddys[k].Run("usher", "cluster", "forget", member, "--address", w.caddys[k].AdminAddr); status != 5 {
			t.Errorf("forget %s: status %d:\n%s", member, status, out)
		}
	}
}

// The definition of the leader holds, and both say that there is another one.
func TestAnotherDefinitionIsTold(t *testing.T) {
	w := newTown(t, 2, short, "instances 1 1", "concurrency 1", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	k := w.leader()
	w.caddys[1-k].MustReload(w.config(1-k, "drain_timeout 7s"))
	for _, c := range w.caddys {
		harness.Eventually(t, soon, func() bool { return c.Logged("defines a service in another way") }, "it is logged")
	}
	wantAllOK(t, w.each("/"))
	w.wantNoMoreThan(1)
}

func TestTheClusterDoesNotChangeWhileCaddyRuns(t *testing.T) {
	w := newTown(t, 1, short, "instances 0 1")
	w.start()
	cfg := w.config(0)
	cfg.Usher = strings.Replace(cfg.Usher, "lease 1s", "lease 2s", 1)
	if err := w.caddys[0].Reload(cfg); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("%v", err)
	}
	wantAllOK(t, w.each("/"))
	w.caddys[0].MustReload(w.config(0, "max_waiting 7"))
	wantAllOK(t, w.each("/"))
}

func TestASuspensionHoldsOnAllMembersAlsoOnThoseThatComeBack(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 1", "concurrency 5", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	k := w.leader()
	away := (k + 1) % 3
	w.stop(away)
	w.caddys[k].Post("web/suspend", `{"reason": "for the night"}`)
	suspended := func(c *harness.Caddy) func() bool {
		return func() bool { r := c.Get("/"); return r.UsherError() == "suspended" }
	}
	for j, c := range w.caddys {
		if j != away {
			harness.Eventually(t, soon, suspended(c), "%d refuses", j)
		}
	}
	w.startOne(away)
	harness.Eventually(t, soon, suspended(w.caddys[away]), "the one that was away refuses")
	w.caddys[away].Post("web/resume", "")
	harness.Eventually(t, soon, func() bool { return len(harness.Failed(w.each("/"))) == 0 }, "all serve again")
}

func TestAServiceThatCannotStartIsRefusedByAllMembers(t *testing.T) {
	w := newTown(t, 2, short, "instances 0 1", "concurrency 5", "scale queue", "start_attempts 1", "start_timeout 2s")
	w.name = "/broken"
	w.app(w.name, "/bin/false")
	w.start()
	for _, r := range w.each("/") {
		if r.UsherError() != "start_failed" {
			t.Errorf("status %d (%s): %s", r.Status, r.UsherError(), r.Body)
		}
	}
}

func TestTheLimitOfTheQueueIsThatOfAllMembers(t *testing.T) {
	w := newTown(t, 2, "", "instances 1 1", "concurrency 1", "scale queue", "max_waiting 4")
	w.start()
	wantAllOK(t, w.each("/"))
	a, b := w.caddys[0], w.caddys[1]
	inside := a.Send(harness.Request{Path: "/sleep?d=5s"})
	harness.Eventually(t, soon, func() bool {
		j := a.Journal()
		return len(j.Of("begin")) == 3 && len(j.Of("end")) == 2 && strings.Contains(a.Admin("GET", "/usher/cluster", "").Body, `"waiting":0,"in_use":1`)
	}, "it is inside, and no request waits as far as is known here")
	var waits []*harness.Pending
	for range 4 {
		waits = append(waits, a.Send(harness.Request{Path: "/"}))
	}
	a.AwaitWaiting("web", 4)
	harness.Eventually(t, soon, func() bool {
		return strings.Contains(b.Admin("GET", "/usher/cluster", "").Body, `"waiting":4`)
	}, "the other one knows of them")
	if r := b.Get("/"); r.UsherError() != "queue_full" {
		t.Errorf("status %d (%s)", r.Status, r.UsherError())
	}
	for name, series := range map[string]int{"caddy_usher_cluster_members": 2, "caddy_usher_cluster_view": 1, "caddy_usher_cluster_isolated": 1, "caddy_usher_shares": 2} {
		if got := b.Metrics(name); len(got) != series {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, p := range append(waits, inside) {
		wantAllOK(t, []harness.Response{p.Wait(t, soon)})
	}
}
