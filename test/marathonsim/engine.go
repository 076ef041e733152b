package marathonsim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"
)

// The engine is Marathon's leader and Mesos' master in one: it owns the apps,
// the instances, the deployments, the launch queue and the agents. Everything
// below belongs to the goroutine of loop; others come in through do and post.
// What Marathon keeps in memory only, and so forgets when another leader is
// elected, is marked.
type engine struct {
	cfg     Config
	profile profile
	clock   *clock
	rng     *rand.Rand
	journal *journal
	bus     *bus
	procs   *launcher
	faults  *faults

	root        map[string]*definition   // the apps as they should be
	versions    map[string][]*definition // every version of an app
	runs        map[string]*run          // what there is of an app; outlives the app until all is stopped
	instances   map[string]*instance     // by instance id
	tasks       map[string]*task         // by task id, those whose process may still be there
	deployments []*deployment
	checkers    map[string][]*checker  // of the leader: forgotten
	shown       map[string][]*instance // what the API shows, by app
	agents      []*agent

	leading     bool // there is an elected leader
	heldBack    []func()
	offerTimer  *timer
	lastRevive  time.Time
	lastVersion time.Time
	servicePort int

	timers   timerHeap
	timerSeq uint64

	commands chan func()
	stopping chan struct{}
	stopped  chan struct{}
	side     sync.WaitGroup // goroutines that probe health
}

// A run is what the engine knows of an app besides its definition.
type run struct {
	id          string
	instances   []*instance // in the order of their creation
	delay       *launchDelay
	lastFailure *taskFailure
	since       time.Time // of the present attempt to launch
	offers      offerStats
	stats       taskStats
}

type taskFailure struct {
	taskID, state, message, host, slaveID string
	version, at                           time.Time
}

func newEngine(cfg Config, p profile, c *clock, j *journal) *engine {
	e := &engine{
		cfg: cfg, profile: p, clock: c, journal: j,
		rng:  rand.New(rand.NewPCG(cfg.Seed, cfg.Seed^0x5eed)),
		root: map[string]*definition{}, versions: map[string][]*definition{}, runs: map[string]*run{},
		instances: map[string]*instance{}, tasks: map[string]*task{}, checkers: map[string][]*checker{},
		shown:       map[string][]*instance{},
		servicePort: 10000,
		commands:    make(chan func(), 64), stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
	e.bus = newBus(e)
	e.faults = newFaults(e)
	return e
}

// loop runs commands and timers until the engine stops.
func (e *engine) loop() {
	defer close(e.stopped)
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	for {
		wake.Reset(e.runDue())
		select {
		case f := <-e.commands:
			f()
		case <-wake.C:
		case <-e.stopping:
			return
		}
	}
}

// do runs f in the engine's goroutine and waits for it. It returns false when
// the engine has stopped.
func (e *engine) do(f func()) bool {
	done := make(chan struct{})
	if !e.post(func() { f(); close(done) }) {
		return false
	}
	select {
	case <-done:
		return true
	case <-e.stopped:
		return false
	}
}

// post has f run in the engine's goroutine.
func (e *engine) post(f func()) bool {
	select {
	case e.commands <- f:
		return true
	case <-e.stopped:
		return false
	}
}

func (e *engine) now() time.Time { return e.clock.now() }

// between samples a duration evenly.
func (e *engine) between(r Range) time.Duration {
	if r.Max <= r.Min {
		return r.Min
	}
	return r.Min + time.Duration(e.rng.Int64N(int64(r.Max-r.Min)))
}

// nextVersion is a version that no app had before: the time, in milliseconds
// as in the API, and a little later if need be.
func (e *engine) nextVersion() time.Time {
	v := e.now().Truncate(time.Millisecond)
	if !v.After(e.lastVersion) {
		v = e.lastVersion.Add(time.Millisecond)
	}
	e.lastVersion = v
	return v
}

// uuid draws from the seed, so that a seed repeats the run's names as well.
func (e *engine) uuid() string {
	a, b := e.rng.Uint64(), e.rng.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", uint32(a>>32), uint16(a>>16), uint16(a)&0x0fff|0x4000,
		uint16(b>>48)&0x3fff|0x8000, b&0xffffffffffff)
}

func (e *engine) nextServicePort() int {
	e.servicePort++
	return e.servicePort - 1
}

func (e *engine) run(id string) *run {
	r := e.runs[id]
	if r == nil {
		r = &run{id: id}
		e.runs[id] = r
	}
	return r
}

// log writes a line of the journal.
func (e *engine) log(kind, app, id, format string, args ...any) {
	e.journal.add(Entry{Time: e.now(), Kind: kind, App: app, ID: id, Text: fmt.Sprintf(format, args...)})
}

// whenLeading runs f now, or, while there is no leader, when one is elected:
// what Mesos has to say waits for a registered framework.
func (e *engine) whenLeading(f func()) {
	if e.leading {
		f()
		return
	}
	e.heldBack = append(e.heldBack, f)
}

// stepDown is the end of a leader. Everything that it kept in memory is gone
// with it.
func (e *engine) stepDown() {
	e.leading = false
	e.log("leader", "", "", "the leader is gone")
	for _, list := range e.checkers {
		for _, c := range list {
			c.timer.stop()
		}
	}
	clear(e.checkers)
	for _, r := range e.runs {
		r.delay = nil
		for _, i := range r.instances {
			i.health = nil
			i.killRetry.stop()
			i.killSent = false
		}
	}
	e.offerTimer.stop()
	e.offerTimer = nil
	e.lastRevive = time.Time{}
	for _, d := range e.deployments {
		d.halt()
	}
}

// elected is the start of a leader: it hears from Mesos what has happened
// meanwhile, and takes up the stored deployments from their first step.
func (e *engine) elected(node string) {
	e.leading = true
	e.log("leader", "", "", "%s is the leader", node)
	for _, i := range e.instances {
		e.publishView(i)
	}
	held := e.heldBack
	e.heldBack = nil
	for _, f := range held {
		f()
	}
	for _, id := range sortedKeys(e.runs) {
		for _, i := range slices.Clone(e.runs[id].instances) {
			e.ensureCheckers(i.def)
			if i.goal == goalDecommissioned && i.active() {
				e.kill(i)
			}
		}
	}
	for _, d := range slices.Clone(e.deployments) {
		d.start()
	}
	for _, id := range sortedKeys(e.root) {
		e.scaleCheck(id)
	}
	e.scheduleOffers()
}

// tick keeps up what Marathon does by timers.
func (e *engine) startTickers() {
	every := func(d time.Duration, f func()) {
		var again func()
		again = func() {
			if e.leading {
				f()
			}
			e.after(d, again)
		}
		e.after(d, again)
	}
	every(e.cfg.ScaleAppsInterval, func() {
		for _, id := range sortedKeys(e.root) {
			e.scaleCheck(id)
		}
	})
	every(10*time.Second, e.forgetOldDelays)
	every(e.cfg.ExpungeInterval, e.expungeUnreachable)
	every(10*time.Second, e.killOverdue)
}

// shutdown ends every process and the engine.
func (e *engine) shutdown() {
	e.do(func() {
		e.leading = false
		for _, t := range e.tasks {
			t.launch.stop()
		}
	})
	e.procs.close()
	close(e.stopping)
	<-e.stopped
	e.bus.close()
	e.side.Wait()
	if e.cfg.removeSandboxes {
		_ = os.RemoveAll(e.cfg.Dir)
	}
}
