package marathon

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// app is the watch over one app, shared by the revisions that run on it. It
// lives as long as one of them does.
//
// A task belongs to one revision for life: to the newest at the time when it
// was first seen. So two revisions of a service on one app do not fight for
// its tasks, and each order means the revision's own.
type app struct {
	id     string
	access access
	uses   int // guarded by apps

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the watch has ended
	kicks  chan struct{} // size 1: read now

	// ordering is held while an order is carried out: an app takes one change
	// after the other.
	ordering chan struct{}

	mu      sync.Mutex
	cluster *cluster
	runners []*runner // oldest first
	tasks   map[string]*task
	seen    map[string]time.Time // tasks that have ended lately, by when they are forgotten
	state   state
	own     map[string]direction // deployments of Usher's making
	expect  expectation
	takenAt time.Time // when the last read was believed

	// surplusFrom is since when more tasks are listed than are wanted, without a
	// deployment that sees to it.
	surplusFrom time.Time

	known     bool            // read at least once
	missing   time.Time       // since when the app does not exist
	outage    *scaler.Failure // it cannot be read
	failing   time.Time       // since when reads have failed
	failed    int             // reads in a row that have failed
	blocked   *scaler.Failure // an order waits for a foreign deployment
	crashing  *scaler.Failure // the last word on why starts fail again and again
	starved   *scaler.Failure // no offer fits
	lastFail  string          // the task failure that was dealt with last
	lastDeath *scaler.Failure // why a task ended last
	hurry     time.Time       // until when pauses of Marathon's own are cleared

	begun, ended int       // reads
	readBegan    time.Time // when the last one that has ended began
	endedAt      time.Time
	readErr      error         // of the last one
	told         chan struct{} // closed when a read has ended
	kicked       time.Time     // the last reason to look closely
	pace         time.Duration
	calm         bool // nothing is on its way
}

// state is what the last read said.
type state struct {
	instances   int
	version     time.Time
	config      string // when the definition changed last
	deployments []string
	queued      int
	queueKnown  bool // queued was read, not guessed
}

// locked says whether a deployment is at work on the app.
func (s state) locked() bool { return len(s.deployments) > 0 }

// task is one task of the app.
type task struct {
	id      string
	owner   *runner
	state   string
	address string
	phase   scaler.Phase
	since   time.Time
	config  time.Time // of which version of the app it is
	failure *scaler.Failure

	stop      bool // Usher had it stopped
	stopAt    time.Time
	name      string // the instance that it is; its id, unless it came back from the dead
	lives     int
	unhealthy bool
	extra     bool      // not counted by Marathon, or about to be replaced
	missed    bool      // the app was not there when it was looked for
	absent    time.Time // since when the list does not show it
	taken     bool      // a deployment was at work then
	stopped   bool      // reported as stopping
	askFrom   time.Time // a read that began after it confirms a probe
	confirmed bool      // it was ready once
}

// counted says whether Marathon counts t among its instances, as far as can be
// told.
func (t *task) counted() bool {
	return !t.stop && !lost(t.state) && t.phase != scaler.PhaseStopping && t.phase != scaler.PhaseEnded
}

// expectation is what a read has to show after a change of Usher's own. Until
// then a read without it is an old one.
type expectation struct {
	version   time.Time
	instances int
	until     time.Time
}

// The times of the watch.
const (
	pollCalm   = 30 * time.Second // nothing is on its way, and events come in
	pollBlind  = 5 * time.Second  // events cannot be had
	paceFirst  = 100 * time.Millisecond
	paceMax    = 2 * time.Second
	closeLook  = 3 * time.Second // after an event: what it is about may be readable only later
	burst      = 20 * time.Millisecond
	staleFor   = 5 * time.Second // how long a read can be behind
	forgetOver = 10 * time.Minute
	outageFrom = 3 * time.Second
)

// apps are those that are watched in this process.
var apps = struct {
	sync.Mutex
	all []*app
}{}

// watch returns the watch over an app for a runner, which is the newest on it
// from then on. It is the same one if any of the URLs is the same: the access
// of the newest is used then.
func watch(id string, a access, r *runner) *app {
	apps.Lock()
	defer apps.Unlock()
	for _, w := range apps.all {
		if w.id == id && slices.ContainsFunc(a.urls, func(u string) bool { return slices.Contains(w.access.urls, u) }) {
			w.uses++
			w.reach(a)
			w.join(r)
			return w
		}
	}
	w := &app{
		id: id, access: a, uses: 1,
		done: make(chan struct{}), kicks: make(chan struct{}, 1), ordering: make(chan struct{}, 1),
		tasks: make(map[string]*task), seen: make(map[string]time.Time), own: make(map[string]direction),
		told: make(chan struct{}), pace: paceFirst, kicked: time.Now(),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.cluster = acquire(a)
	w.join(r)
	w.cluster.attach(w)
	apps.all = append(apps.all, w)
	go w.run()
	return w
}

// reach changes the access. The caller holds apps.
func (a *app) reach(to access) {
	if a.access.key() == to.key() {
		return
	}
	next := acquire(to)
	next.attach(a)
	a.mu.Lock()
	before := a.cluster
	a.cluster, a.access = next, to
	a.mu.Unlock()
	before.detach(a)
	before.release()
	a.kick()
}

// join makes r the newest runner, and tells it what is known.
func (a *app) join(r *runner) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.app = a
	for _, o := range a.runners {
		if o.env.Service != r.env.Service {
			r.env.Logger().Warn("two services scale the same Marathon app; each task belongs to one of them, but neither can count on the other",
				slog.String("app", a.id), slog.String("other", o.env.Service))
		}
	}
	a.runners = append(a.runners, r)
	if a.known {
		a.report()
	}
}

// leave takes r off the watch. The last one ends it, and waits for that.
func (a *app) leave(ctx context.Context, r *runner) error {
	apps.Lock()
	if r.left {
		apps.Unlock()
		return nil
	}
	r.left = true
	a.uses--
	last := a.uses == 0
	if last {
		apps.all = slices.DeleteFunc(apps.all, func(o *app) bool { return o == a })
	}
	apps.Unlock()
	a.mu.Lock()
	a.runners = slices.DeleteFunc(a.runners, func(o *runner) bool { return o == r })
	for _, t := range a.tasks {
		if t.owner == r {
			t.owner = a.newest()
		}
	}
	if !last && a.known {
		a.report()
	}
	c := a.cluster
	a.mu.Unlock()
	if !last {
		return nil
	}
	a.cancel()
	ended := make(chan struct{})
	go func() {
		<-a.done
		c.detach(a)
		c.release()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newest is the runner that new tasks belong to. The lock is held.
func (a *app) newest() *runner {
	if len(a.runners) == 0 {
		return nil
	}
	return a.runners[len(a.runners)-1]
}

func (a *app) logger() *slog.Logger {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.newest(); r != nil {
		return r.env.Logger()
	}
	return nil
}

// reached returns the connections in use.
func (a *app) reached() *cluster {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cluster
}

// kick has the app read now, and closely for a while.
func (a *app) kick() {
	a.mu.Lock()
	a.kicked, a.pace = time.Now(), paceFirst
	a.mu.Unlock()
	select {
	case a.kicks <- struct{}{}:
	default:
	}
}

// run reads the app: when it is told to, closely while something is on its
// way, and now and then.
func (a *app) run() {
	defer close(a.done)
	for {
		a.read()
		timer := time.NewTimer(a.untilNext())
		select {
		case <-a.ctx.Done():
			timer.Stop()
			return
		case <-a.kicks:
			// What comes in a burst is read once.
			timer.Reset(burst)
			select {
			case <-a.ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			select {
			case <-a.kicks:
			default:
			}
		case <-timer.C:
		}
	}
}

// untilNext is the pause before the next periodic read.
func (a *app) untilNext() time.Duration {
	streams := a.reached().streams()
	a.mu.Lock()
	defer a.mu.Unlock()
	read := a.readErr == nil || !a.missing.IsZero()
	switch calm := read && a.calm && time.Since(a.kicked) >= closeLook; {
	case calm && streams:
		return pollCalm
	case calm:
		return pollBlind
	}
	pause := a.pace
	a.pace = min(2*a.pace, paceMax)
	return pause
}

// fresh waits for a read that begins after the call, and returns its error.
func (a *app) fresh(ctx context.Context) error {
	a.mu.Lock()
	want := a.begun + 1
	a.mu.Unlock()
	a.kick()
	for {
		a.mu.Lock()
		ended, err, told := a.ended, a.readErr, a.told
		a.mu.Unlock()
		if ended >= want {
			return err
		}
		select {
		case <-told:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
	}
}

// next waits for the end of the next read, whichever it is.
func (a *app) next(ctx context.Context) error {
	a.mu.Lock()
	told := a.told
	a.mu.Unlock()
	select {
	case <-told:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}
