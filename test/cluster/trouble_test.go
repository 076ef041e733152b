//go:build linux

package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG14FiveCaddysThatStartAtTheSameMoment(t *testing.T) {
	w := newTown(t, 5, short, "instances 1 2", "concurrency 1", "scale queue")
	w.start()
	for range 3 {
		wantAllOK(t, w.each("/sleep?d=20ms"))
	}
	w.awaitAll(w.everyone()...)
	leaders := make(map[string]bool)
	for k := range w.caddys {
		s, _ := w.status(k)
		leaders[s.Leader] = true
	}
	if len(leaders) != 1 {
		t.Errorf("they follow %v", leaders)
	}
	w.wantNoMoreThan(1)
}

// check holds the books of a load against what was done.
func (w *town) check(all []*record, d *done, slots int) {
	w.t.Helper()
	b := w.books(all, d)
	b.checkOutcomes(time.Hour)
	if n := b.checkSlots(map[string]int{"web": slots}); n > 0 {
		w.t.Errorf("requests overlapped %d times", n)
	}
	w.t.Logf("%s; what was done:\n%s", b.tally(), d)
	if len(all) < 30 {
		w.t.Errorf("only %d requests were made", len(all))
	}
}

func TestG14ARollingRestartCostsTheOthersNoRequest(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	c, d := w.crowd(w.everyone(), 6, 1, "web"), new(done)
	for k := range w.caddys {
		gone := span{what: "a restart", caddy: k, from: time.Now()}
		w.stop(k)
		d.deaths = append(d.deaths, span{caddy: k, from: gone.from, to: time.Now()})
		w.startOne(k)
		gone.to = time.Now()
		d.gone = append(d.gone, gone)
		w.awaitAll(w.everyone()...)
		time.Sleep(time.Second)
	}
	w.check(c.stop(), d, 2)
	w.checkNothingIsLeft(2)
}

func TestG14AReloadOfAllMembersCostsNoRequest(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	c, d := w.crowd(w.everyone(), 6, 2, "web"), new(done)
	for range 2 {
		for k := range w.caddys {
			time.Sleep(300 * time.Millisecond)
			w.reload(k, d)
		}
	}
	w.check(c.stop(), d, 2)
	w.checkNothingIsLeft(2)
}

// hold is a request that is inside an instance for long, at a Caddy.
func (w *town) hold(k int) *harness.Pending {
	w.t.Helper()
	before := len(w.caddys[0].Journal().Of("begin"))
	p := w.caddys[k].Send(harness.Request{Path: "/sleep?d=25s"})
	harness.Eventually(w.t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > before }, "a request is inside")
	return p
}

// member is a Caddy that does not lead. None may stand still.
func (w *town) member() int { return (w.leader() + 1) % len(w.caddys) }

// A Caddy stands still with a request inside, for longer than lost_after: others
// use its slot then, and not before. This is the case in which requests may
// overlap. When it goes on, its request ends at once.
func TestG14OneThatStandsStillForLongerThanLostAfter(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 1", "concurrency 1", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	leader, k := w.leader(), w.member()
	inside := w.hold(k)
	w.freeze(k)
	began := time.Now()
	next := w.caddys[leader].Get("/")
	wantAllOK(t, []harness.Response{next})
	if next.Took < lostAfter {
		t.Errorf("its slot was used after %s", next.Took)
	}
	if next.Took > 2*lease+lostAfter+2*time.Second {
		t.Errorf("its slot was used only after %s", next.Took)
	}
	time.Sleep(2*lostAfter - time.Since(began))
	w.thaw(k)
	began = time.Now()
	if r := inside.Wait(t, soon); len(harness.Failed([]harness.Response{r})) == 0 {
		t.Errorf("its request went on: %d %s", r.Status, r.Body)
	}
	if d := time.Since(began); d > harness.Slow(time.Second) {
		t.Errorf("its request ended %s after it went on", d)
	}
	w.awaitAll(w.everyone()...)
	before := len(w.caddys[0].Journal())
	for range 5 {
		wantAllOK(t, w.each("/sleep?d=10ms"))
	}
	if n := w.caddys[0].Journal()[before:].MaxInside(); n > 1 {
		t.Errorf("afterwards %d were inside", n)
	}
}

// With "lost_after replace" the slots of one that stands still are not used by
// others, however long that takes: its instance is drained and replaced.
func TestG14OneThatStandsStillAndWhatItUsesIsReplaced(t *testing.T) {
	w := newTown(t, 3, "\tlease 1s\n\tlost_after replace", "instances 1 1", "concurrency 1", "scale queue", "drain_timeout 4s")
	w.start()
	wantAllOK(t, w.each("/"))
	leader, k := w.leader(), w.member()
	inside := w.hold(k)
	w.freeze(k)
	wantAllOK(t, []harness.Response{w.caddys[leader].Get("/")})
	w.thaw(k)
	inside.Wait(t, soon) // its instance has ended
	w.awaitAll(w.everyone()...)
	wantAllOK(t, w.each("/"))
	w.wantNoMoreThan(1)
	if n := w.caddys[0].Journal().Starts(); n != 2 {
		t.Errorf("%d instances were started", n)
	}
}

// One that is cut off ends its requests before others use its slots, and lets
// others wait until it is back. A member that still reaches etcd would lead
// instead.
func TestG14OneThatIsCutOff(t *testing.T) {
	w := newTown(t, 3, short, "instances 1 1", "concurrency 1", "scale queue")
	w.start()
	wantAllOK(t, w.each("/"))
	for _, c := range []struct {
		name  string
		leads bool
		ways  func(k, leader int) []way
	}{
		{"from the leader", false, func(k, leader int) []way { return both(k, leader) }},
		{"and nothing of it arrives", false, func(k, leader int) []way { return []way{{k, leader}} }},
		{"and nothing arrives there", false, func(k, leader int) []way { return []way{{leader, k}} }},
		{"from all others", false, func(k, _ int) []way { return w.network.around(k) }},
		{"and it is the one that leads", true, func(k, _ int) []way { return w.network.around(k) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.awaitAll(w.everyone()...)
			k := w.leader()
			if !c.leads {
				k = w.member()
			}
			other := (k + 1) % 3
			inside := w.hold(k)
			ways := append(c.ways(k, w.leader()), both(k, theEtcd)...)
			w.network.cut(ways...)
			next := w.caddys[other].Send(harness.Request{Path: "/"})
			ended := inside.Wait(t, soon)
			if ended.Took < lostAfter/2 || len(harness.Failed([]harness.Response{ended})) == 0 {
				t.Errorf("its request ended with status %d after %s", ended.Status, ended.Took)
			}
			if next.Done() {
				t.Error("its slot was used before its request had ended")
			}
			if s, ok := w.status(k); !ok || !s.Isolated {
				t.Errorf("it says of itself: %+v", s)
			}
			waits := w.caddys[k].Send(harness.Request{Path: "/"})
			r := next.Wait(t, soon)
			wantAllOK(t, []harness.Response{r})
			if r.Took > 3*lease+lostAfter+2*time.Second {
				t.Errorf("its slot was used only after %s", r.Took)
			}
			if waits.Done() {
				t.Error("it served without a lease")
			}
			w.network.mend(ways...)
			wantAllOK(t, []harness.Response{waits.Wait(t, soon)})
		})
	}
	w.wantNoMoreThan(1)
}

// The leader is cut off from etcd: as long as all members follow it, it goes on.
func TestG14ALeaderThatDoesNotReachEtcdGoesOn(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	w.awaitAll(w.everyone()...)
	k := w.leader()
	before, _ := w.status(k)
	c, d := w.crowd(w.everyone(), 6, 3, "web"), new(done)
	w.network.cut(both(k, theEtcd)...)
	time.Sleep(lease + lostAfter)
	if s, ok := w.status(k); !ok || s.Isolated || s.View != before.View {
		t.Errorf("before it was %+v, now %+v", before, s)
	}
	w.network.mend(both(k, theEtcd)...)
	w.check(c.stop(), d, 2)
	for _, r := range c.all {
		if !r.fine() && !r.left {
			t.Errorf("%s", r)
			break
		}
	}
}

// Another one leads when the leader is cut off from all: within two seconds and
// a lease (P13).
func TestG14ALeaderThatIsCutOffIsFollowedByAnother(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	w.awaitAll(w.everyone()...)
	k := w.leader()
	c, d := w.crowd(w.everyone(), 6, 4, "web"), new(done)
	apart := span{what: "the leader was cut off", caddy: everywhere, from: time.Now()}
	w.network.cut(w.network.around(k)...)
	harness.Eventually(t, harness.Slow(lease+2*time.Second), func() bool {
		for j := range w.caddys {
			if s, ok := w.status(j); ok && j != k && !s.Isolated && s.Leader == s.Member {
				return true
			}
		}
		return false
	}, "another one leads")
	time.Sleep(lostAfter)
	w.network.mend(w.network.around(k)...)
	apart.to = time.Now()
	d.apart = append(d.apart, apart)
	w.awaitAll(w.everyone()...)
	time.Sleep(time.Second)
	w.check(c.stop(), d, 2)
	w.checkNothingIsLeft(2)
}

// etcd is restored from a backup under load: the leader finds out, writes a newer
// view, and gives no slots until requests of both views have ended.
func TestG14EtcdIsRestoredFromABackup(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	w.awaitAll(w.everyone()...)
	backup := w.etcd.Backup()
	k := w.member()
	w.stop(k) // it leaves, and is a member in the backup
	w.startOne(k)
	w.awaitAll(w.everyone()...)
	before, _ := w.status(w.leader())

	c, d := w.crowd(w.everyone(), 6, 5, "web"), new(done)
	apart := span{what: "etcd was restored", caddy: everywhere, from: time.Now()}
	w.etcd.Restore(backup)
	harness.Eventually(t, soon, func() bool {
		return w.caddys[w.leader()].Logged("the coordinator has forgotten the view")
	}, "the leader says so")
	harness.Eventually(t, soon, func() bool {
		s, ok := w.status(w.leader())
		return ok && s.View > before.View && !s.Isolated
	}, "there is a newer view than %d", before.View)
	apart.to = time.Now().Add(lease + lostAfter)
	d.apart = append(d.apart, apart)
	w.awaitAll(w.everyone()...)
	served := len(w.caddys[0].Journal().Of("begin"))
	harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > served+100 }, "they serve again")
	w.check(c.stop(), d, 2)
	w.checkNothingIsLeft(2)
}

// Something writes nonsense to the object, and an operator takes it away: they
// say so, and serve on until then.
func TestG14TheObjectIsOverwritten(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	w.start()
	wantAllOK(t, w.each("/"))
	w.awaitAll(w.everyone()...)
	const key = "L3VzaGVyL3VzaGVyL3ZpZXc=" // /usher/usher/view
	c, d := w.crowd(w.everyone(), 6, 6, "web"), new(done)
	apart := span{what: "the object was overwritten", caddy: everywhere, from: time.Now()}
	w.etcd.Call("/v3/kv/put", "", map[string]string{"key": key, "value": "bm9uc2Vuc2U="}, nil)
	harness.Eventually(t, soon, func() bool {
		return strings.Contains(w.caddys[w.leader()].RawLog(), "the object is not what Usher stores")
	}, "the leader says so")
	time.Sleep(lease + lostAfter)
	served := len(w.caddys[0].Journal().Of("begin"))
	harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > served+50 }, "they serve on")
	w.etcd.Call("/v3/kv/deleterange", "", map[string]string{"key": key}, nil)
	harness.Eventually(t, soon, func() bool {
		return w.caddys[w.leader()].Logged("the coordinator has forgotten the view")
	}, "the leader finds out")
	apart.to = time.Now().Add(lease + lostAfter)
	d.apart = append(d.apart, apart)
	w.awaitAll(w.everyone()...)
	served = len(w.caddys[0].Journal().Of("begin"))
	harness.Eventually(t, soon, func() bool { return len(w.caddys[0].Journal().Of("begin")) > served+50 }, "they serve again")
	w.check(c.stop(), d, 2)
}
