package tasks

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

var (
	count = flag.Int("tasks.count", 2000, "how many requests are handed in to be executed later")
	kills = flag.Int("tasks.kills", 3, "how often Caddy is killed meanwhile")
	seed  = flag.Uint64("tasks.seed", 0, "from which the requests and the kills are drawn; 0 is another one each time")
)

// Kills is how often Caddy is to be killed, as the flag says.
func Kills() int { return *kills }

// patience is how long nothing at all may happen.
var patience = harness.Slow(time.Minute)

// World is some Caddys with one store, what was handed in to them, and what was
// promised.
type World struct {
	Caddys []*harness.Caddy

	t       *testing.T
	seed    uint64
	rng     *rand.Rand // of what is killed
	configs []harness.Config
	jobs    []job
	journal *os.File

	accepted, begun atomic.Int64
	frozen          map[int]time.Time // since when Caddys stand still

	mu       sync.Mutex
	promises []promise // by job
	problems []string  // of clients
}

// New makes a world with so many Caddys. store is the option of async for each.
func New(t *testing.T, caddys int, store func(c *harness.Caddy) string) *World {
	t.Helper()
	w := &World{t: t, seed: *seed, promises: make([]promise, *count), frozen: make(map[int]time.Time)}
	if w.seed == 0 {
		w.seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	w.rng = rand.New(rand.NewPCG(w.seed, 1<<40))
	t.Logf("-run %s -tasks.count %d -tasks.kills %d -tasks.seed %d repeats this run", t.Name(), *count, *kills, w.seed)
	for seq := range *count {
		w.jobs = append(w.jobs, newJob(w.seed, seq))
	}
	w.Caddys = harness.Together(t, caddys)
	for k, c := range w.Caddys {
		if k > 0 {
			// All write to one journal.
			if err := os.Symlink(w.Caddys[0].Path("journal"), c.Path("journal")); err != nil {
				t.Fatal(err)
			}
		}
		stored := store(c)
		w.configs = append(w.configs, harness.Config{Site: site(c, "again", stored, 1000) + "\n" + site(c, "once", stored, 1)})
	}
	journal, err := os.OpenFile(w.Caddys[0].Path("journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = journal.Close() })
	w.journal = journal
	for k, c := range w.Caddys {
		c.Start(w.configs[k])
	}
	return w
}

// site is the directive of a service.
func site(c *harness.Caddy, service, store string, attempts int) string {
	return harness.Usher("/work/"+service+"* "+service, c.Backend(), "instances 0 2", "concurrency 8", fmt.Sprintf(
		"async {\n%s\ngroup {header.X-Group}\nheaders X-Seq\nmax_tasks %d\nattempts %d\nbackoff 20ms 200ms\n}", store, *count, attempts))
}

// What the test writes to the journal.
const (
	killing   = "killing"   // the process PID
	killCaddy = "kill"      // the Caddy Mark, with its instances
	trouble   = "trouble"   // begins for the Caddy Mark, or for all if that is empty
	calm      = "calm"      // ends it
	thaw      = "thaw"      // the Caddy Mark goes on
	cancelled = "cancelled" // Task: its client was told that it will not be executed
)

// note writes a line to the journal.
func (w *World) note(e harness.Entry) {
	e.Time = time.Now().UnixNano()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = w.journal.Write(append(line, '\n'))
	}
	if err != nil {
		w.problem("the journal: %v", err)
	}
}

// problem notes what a client or a kill has found wrong.
func (w *World) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// Trouble does something by which executions may have to be repeated, whichever Caddy
// began them.
func (w *World) Trouble(do func()) {
	w.note(harness.Entry{Event: trouble})
	do()
	w.note(harness.Entry{Event: calm})
}

// KillCaddy kills a Caddy, the n-th of those that do not stand still, and starts it
// again at once.
func (w *World) KillCaddy(n int) {
	w.t.Helper()
	k := w.awake(n)
	c := w.Caddys[k]
	w.note(harness.Entry{Event: killCaddy, Mark: c.Mark()})
	c.Kill()
	c.Start(w.configs[k])
}

// KillInstance kills an instance of such a Caddy, if it has any.
func (w *World) KillInstance(n int) {
	c := w.Caddys[w.awake(n)]
	all := c.Processes()
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b harness.Process) int { return a.PID - b.PID })
	p := all[n%len(all)]
	w.note(harness.Entry{Event: killing, PID: p.PID})
	p.Kill()
}

// awake returns the number of a Caddy that does not stand still.
func (w *World) awake(n int) int {
	var all []int
	for k := range w.Caddys {
		if _, still := w.frozen[k]; !still {
			all = append(all, k)
		}
	}
	return all[n%len(all)]
}

// standstill is how long a frozen Caddy stands still: for longer than its lease.
const standstill = 25 * time.Second

// Freeze lets a Caddy stand still until its lease is over, and a bit. Its instances go
// on.
func (w *World) Freeze(n int) {
	w.t.Helper()
	if len(w.frozen) > 0 {
		return
	}
	k := w.awake(n)
	c := w.Caddys[k]
	w.note(harness.Entry{Event: trouble, Mark: c.Mark()})
	p, err := os.FindProcess(c.PID())
	if err == nil {
		err = harness.Freeze(p)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.frozen[k] = time.Now()
}

// thawDue lets those go on that have stood still for long enough.
func (w *World) thawDue() {
	for k, since := range w.frozen {
		if time.Since(since) < standstill {
			continue
		}
		c := w.Caddys[k]
		w.note(harness.Entry{Event: thaw, Mark: c.Mark()})
		c.Signal(syscall.SIGCONT)
		w.note(harness.Entry{Event: calm, Mark: c.Mark()})
		delete(w.frozen, k)
	}
}

// Disturbance is something that is done several times.
type Disturbance struct {
	Count int
	Do    func(n int) // n is drawn
}

// step is one of these times.
type step struct {
	at    float64 // how much of the work is done
	pause time.Duration
	n     int
	do    func(n int)
}

// plan draws the steps, in their order.
func (w *World) plan(all []Disturbance) (steps []step) {
	for _, d := range all {
		for range d.Count {
			steps = append(steps, step{w.rng.Float64(), time.Duration(w.rng.IntN(50_000)) * time.Microsecond, w.rng.IntN(1 << 20), d.Do})
		}
	}
	slices.SortFunc(steps, func(a, b step) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	return steps
}

// Run hands in the jobs, disturbs that and their execution, waits until all have ended,
// and checks what has come of them.
func (w *World) Run(all ...Disturbance) {
	w.t.Helper()
	began := time.Now()
	steps := w.plan(append(all, Disturbance{*kills, w.KillCaddy}, Disturbance{3 * *kills, w.KillInstance}))
	counting := w.countBegun()
	defer counting()
	handedIn := w.handInAll()
	left := int64(-1) // how many were to be executed when all were accepted
	for _, s := range steps {
		w.await(func() bool {
			// The first half of the work is to hand in, the second one to execute.
			accepted, begun, n := w.accepted.Load(), w.begun.Load(), int64(len(w.jobs))
			if accepted < n {
				return float64(accepted) >= 2*s.at*float64(n)
			}
			if left < 0 {
				left = max(0, n-begun)
			}
			return s.at < 0.5 || float64(begun-(n-left)) >= (2*s.at-1)*0.9*float64(left)
		})
		time.Sleep(s.pause)
		s.do(s.n)
	}
	accepted := <-handedIn
	w.await(func() bool { return len(w.frozen) == 0 })
	w.await(w.allEnded)
	w.t.Logf("%d were accepted in %v, and had ended after %v; %d steps", len(w.jobs), accepted.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond), len(steps))
	w.check()
}

// await waits until something holds, as long as anything happens.
func (w *World) await(holds func() bool) {
	w.t.Helper()
	last, since := int64(-1), time.Now()
	for !holds() {
		w.thawDue()
		if now := w.accepted.Load() + w.begun.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > patience {
			w.t.Fatalf("nothing has happened for %v: %d of %d were accepted, and %d executions have begun; %v", patience, w.accepted.Load(), len(w.jobs), w.begun.Load(), w.queues())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
