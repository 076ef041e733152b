//go:build linux

package cluster

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var (
	duration = flag.Duration("cluster.duration", 40*time.Second, "how long everything goes wrong in TestChaos; with more than a minute there are five Caddys, and what lasts long is done too")
	seed     = flag.Uint64("cluster.seed", 0, "from which the plan and the load of TestChaos are drawn; 0 is another one each time")
)

// The times of the cluster in tests that see the end of a lease. They are those
// of the option short.
const (
	lease     = time.Second
	lostAfter = 3 * time.Second
)

// step is one thing that is done to the cluster.
type step struct {
	what   string
	caddy  int // counted from the one that leads
	other  int // counted from caddy
	lasts  time.Duration
	longer bool // only in the long form
}

// steps are all that can be done.
var steps = []step{
	{what: "kill"},
	{what: "kill", caddy: 1},
	{what: "restart"},
	{what: "restart", caddy: 1},
	{what: "reload"},
	{what: "reload", caddy: 1},
	{what: "freeze", lasts: 500 * time.Millisecond},
	{what: "freeze", caddy: 1, lasts: 500 * time.Millisecond},
	{what: "freeze", lasts: 2500 * time.Millisecond},
	{what: "freeze", caddy: 1, lasts: 2500 * time.Millisecond},
	{what: "freeze", lasts: 8 * time.Second},
	{what: "freeze", caddy: 1, lasts: 8 * time.Second},
	{what: "freeze", caddy: 1, lasts: 30 * time.Second, longer: true},
	{what: "cut one way", other: 1, lasts: 2 * time.Second},
	{what: "cut one way", caddy: 1, other: -1, lasts: 2 * time.Second},
	{what: "cut", caddy: 1, other: -1, lasts: 2500 * time.Millisecond},
	{what: "cut", caddy: 1, other: -1, lasts: 7 * time.Second},
	{what: "cut", caddy: 1, other: 1, lasts: 2 * time.Second},
	{what: "isolate", lasts: 3 * time.Second},
	{what: "isolate", lasts: 7 * time.Second},
	{what: "isolate", caddy: 1, lasts: 3 * time.Second},
	{what: "cut from etcd", lasts: 3 * time.Second},
	{what: "cut from etcd", caddy: 1, lasts: 3 * time.Second},
	{what: "etcd away", lasts: 3 * time.Second},
	{what: "etcd away", lasts: 60 * time.Second, longer: true},
	{what: "etcd frozen", lasts: 3 * time.Second},
}

// takes is about how long a step takes, with the time in which all is well
// again.
func (s step) takes() time.Duration { return s.lasts + 4*time.Second }

// plan draws steps for a time.
func plan(r *rand.Rand, d time.Duration) (all []step) {
	long := d > time.Minute
	for d > 0 {
		// Each of them comes about as often.
		order := r.Perm(len(steps))
		for _, k := range order {
			s := steps[k]
			if d <= 0 || s.longer && !long || s.takes() > d+4*time.Second {
				continue
			}
			d -= s.takes()
			all = append(all, s)
		}
		if d < 5*time.Second {
			break
		}
	}
	return all
}

// TestChaos does everything to a cluster under a load of everything.
func TestChaos(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("go test ./test/cluster -run Chaos -cluster.duration %s -cluster.seed %d repeats this run", *duration, seed)
	n := 3
	if *duration > time.Minute {
		n = 5
	}
	rng := rand.New(rand.NewPCG(seed, 0))

	const waitTimeout = 40 * time.Second
	options := []string{"scale queue", "max_waiting 2000", fmt.Sprintf("wait_timeout %s", waitTimeout)}
	w := newTown(t, n, short, append(options, "instances 2 2", "concurrency 2")...)
	w.more = []service{{"elastic", append(options, "instances 0 3", "concurrency 1", "idle_timeout 1s")}}
	w.app("/elastic", w.caddys[0].App())
	w.start()
	slots := map[string]int{"web": 2, "elastic": 1}
	w.awaitAll(w.everyone()...)
	w.caddys[w.leader()].AwaitReady("web", 2, soon)
	for service := range slots {
		wantAllOK(t, w.each("/"+service+"/"))
	}

	began := time.Now()
	c := w.crowd(w.everyone(), 24/n, seed, "web", "web", "elastic")
	d := new(done)
	for _, s := range plan(rng, *duration) {
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
		w.do(s, d)
		w.awaitAll(w.everyone()...)
		time.Sleep(2 * lease)
	}
	ended := time.Now()
	all := c.stop()
	w.checkNothingIsLeft(2)

	b := w.books(all, d)
	b.checkOutcomes(waitTimeout)
	overlaps := b.checkSlots(slots)
	b.checkIdle("web", 4, began, ended, func(s span) time.Time {
		// A Caddy that is neither known to be dead nor alive has what it held for so
		// long; another one takes over after a lease.
		recovered := s.to.Add(lease + 2*time.Second)
		if lost := s.from.Add(2*lease + lostAfter + 2*time.Second); lost.After(recovered) && !strings.Contains(s.what, "reloaded") {
			recovered = lost
		}
		return recovered
	})
	t.Logf("%s; %d overlaps of Caddys that stood still for too long; what was done:\n%s", b.tally(), overlaps, d)
	if len(all) < 200 {
		t.Errorf("only %d requests were made", len(all))
	}
}

// everyone are the numbers of all Caddys.
func (w *town) everyone() (all []int) {
	for k := range w.caddys {
		all = append(all, k)
	}
	return all
}

// do does one thing, and takes it back.
func (w *town) do(s step, d *done) {
	w.t.Helper()
	n := len(w.caddys)
	k := (w.leader() + s.caddy) % n
	j := (k + s.other + n) % n
	done := span{caddy: k, from: time.Now()}
	note := func(to *[]span, format string, args ...any) {
		done.what, done.to = fmt.Sprintf(format, args...), time.Now()
		*to = append(*to, done)
	}
	switch s.what {
	case "kill":
		w.kill(k)
		d.deaths = append(d.deaths, span{caddy: k, from: done.from, to: time.Now()})
		time.Sleep(500 * time.Millisecond)
		w.startOne(k)
		note(&d.gone, "Caddy %d was killed, and started again", k)
	case "restart":
		w.stop(k)
		d.deaths = append(d.deaths, span{caddy: k, from: done.from, to: time.Now()})
		time.Sleep(500 * time.Millisecond)
		w.startOne(k)
		note(&d.gone, "Caddy %d was ended, and started again", k)
	case "reload":
		w.reload(k, d)
	case "freeze":
		w.freeze(k)
		time.Sleep(s.lasts)
		w.thaw(k)
		note(&d.still, "Caddy %d stood still", k)
	case "cut one way":
		w.apart(s, way{k, j})
		done.caddy = everywhere
		note(&d.apart, "nothing arrived from Caddy %d at Caddy %d", k, j)
	case "cut":
		w.apart(s, both(k, j)...)
		done.caddy = everywhere
		note(&d.apart, "Caddys %d and %d were apart", k, j)
	case "isolate":
		w.apart(s, w.network.around(k)...)
		done.caddy = everywhere
		note(&d.apart, "Caddy %d was cut off from all", k)
	case "cut from etcd":
		w.apart(s, both(k, theEtcd)...)
		note(&d.apart, "Caddy %d was cut off from etcd", k)
	case "etcd away":
		w.etcd.Stop()
		time.Sleep(s.lasts)
		w.etcd.Start()
		done.caddy = everywhere
		note(&d.apart, "etcd did not run")
	case "etcd frozen":
		w.etcd.Freeze()
		time.Sleep(s.lasts)
		w.etcd.Thaw()
		done.caddy = everywhere
		note(&d.apart, "etcd stood still")
	default:
		w.t.Fatalf("step %q", s.what)
	}
}

// apart cuts ways for as long as a step lasts.
func (w *town) apart(s step, ways ...way) {
	w.network.cut(ways...)
	time.Sleep(s.lasts)
	w.network.mend(ways...)
}
