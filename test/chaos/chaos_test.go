package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

var (
	duration = flag.Duration("chaos.duration", 5*time.Second, "how long everything goes wrong")
	seed     = flag.Uint64("chaos.seed", 0, "from which the plan and the load are drawn; 0 is another one each time")
	verbose  = flag.Bool("chaos.plan", false, "print the plan although nothing is wrong")
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestChaos lets everything go wrong that goes wrong with instances, Caddy and
// operators.
func TestChaos(t *testing.T) {
	t.Parallel()
	run(t, everything, 1)
}

// TestShortage is the same with a Caddy that every now and then has too few
// file descriptors.
func TestShortage(t *testing.T) {
	t.Parallel()
	run(t, shortage, 2)
}

func run(t *testing.T, p profile, round uint64) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	rng := rand.New(rand.NewPCG(seed, 1000*round))
	plan := newPlan(rng, p, *duration)
	t.Logf("go test ./test/chaos -run %s -chaos.duration %s -chaos.seed %d repeats this run", t.Name(), *duration, seed)
	t.Cleanup(func() {
		if t.Failed() || *verbose {
			t.Logf("the plan:\n%s", printPlan(plan))
		}
	})

	c := harness.New(t)
	taken, err := net.Listen("tcp", c.SpareAddr) // what a bad configuration would need
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// Below what Usher takes by default, in a part of its own.
	from := 21000 + rng.IntN(8)*600
	w := newTown(c, fmt.Sprintf("%d-%d", from, from+599), rng.IntN(3) == 0)
	e, l := newEvents(), new(ledger)
	v := &vandal{t: t, c: c, town: w, events: e, stopped: make(map[int]string)}
	w.begin(w.now)
	c.Start(w.config(w.now))
	w.end(w.now)

	serveAll(t, c)
	checkAsleep(t, c, w.wide)
	base := takeFootprint(t, c)

	stop := make(chan struct{})
	watching := watchBooks(c)
	clients := load(w, l, seed+round, 24, 60*time.Millisecond, stop)
	v.follow(plan)
	v.relent()
	close(stop)
	clients.Wait()
	looks, broken := watching.end()
	for _, text := range broken[:min(len(broken), 5)] {
		t.Errorf("%s\n%s", text, "a request waits beside a free slot")
	}

	for _, name := range services {
		// A start by hand skips the pause.
		c.Post(name+"/wake", "")
	}
	serveAll(t, c)
	checkAsleep(t, c, w.wide)
	checkFootprint(t, c, base)

	b := openBooks(t, c, w, e, l)
	b.sortRecords()
	b.judgeOutcomes()
	b.checkSlots()
	b.checkOnce()
	pairs := b.checkOrder()
	t.Logf("%d steps; %s; %d starts; the order of %d pairs was checked, and the counters %d times", len(plan), b.tally(), b.journal.Starts(), pairs, looks)
}

// serveAll waits until every service serves.
func serveAll(t *testing.T, c *harness.Caddy) {
	t.Helper()
	for _, name := range services {
		var last harness.Response
		harness.Eventually(t, harness.Slow(20*time.Second), func() bool {
			last = c.Get("/" + name + "/")
			return last.Status == http.StatusOK
		}, "%s serves", name)
	}
}
