package docker

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/caddy-usher/usher/scaler"
)

// member is a container of a service, and what is to become of it. All of it is
// guarded by the engine's lock.
//
// At most one worker is busy with a container at a time. It compares what the
// container is to be with what it is, and makes one call after the other until
// the two agree. So an order never waits for another one, and the last one
// counts.
type member struct {
	id   string // "" until it is made
	made bool   // Usher has made it, as a copy or of an image
	tag  string // names it on its labels, if this runner makes it
	of   string // the container that it is a copy of

	image string // the id of the image that its name meant when it was made

	view *view // nil until it is there, and when it is gone
	gone bool
	busy bool

	instance *instance // what runs, or is to run
	leaving  *instance // what is to stop; no other starts before it has
	dying    *instance // it has ended by itself; its last words are being read

	foreign bool // something else may have started it
	discard bool // it is to be removed
	pausing bool // leaving is to be paused, not stopped
	until   *time.Timer
	refused time.Time // since when the engine refuses to stop it
}

// instance is one run of a container.
type instance struct {
	id      string
	since   time.Time
	adopted bool

	started string // when the engine has started it; "" until it has
	address string
	failure *scaler.Failure // why it has no address, or could not be started
	delay   *scaler.Failure

	listed      bool // reported
	stopTimeout time.Duration

	ctx    context.Context // of its start
	cancel context.CancelFunc
	begun  chan struct{} // closed when the start was answered, with failure set or not
	once   sync.Once
}

// instanceCount makes ids unique.
var instanceCount atomic.Uint64

func newInstance(ctx context.Context, name string, now time.Time) *instance {
	i := &instance{
		id:    name + "-" + strconv.FormatInt(now.UnixMilli(), 36) + strconv.FormatUint(instanceCount.Add(1), 36),
		since: now, begun: make(chan struct{}),
	}
	i.ctx, i.cancel = context.WithCancel(ctx)
	return i
}

// runs says whether the engine has started it.
func (i *instance) runs() bool { return i.started != "" }

// answered says that its start was answered.
func (i *instance) answered() { i.once.Do(func() { close(i.begun) }) }

// instances appends what is to be reported of m.
func (m *member) instances(all []scaler.Instance) []scaler.Instance {
	for _, i := range []*instance{m.leaving, m.dying} {
		if i != nil && i.listed {
			all = append(all, i.report(m.view, scaler.PhaseStopping))
		}
	}
	if i := m.instance; i != nil && i.listed {
		phase := scaler.PhaseStarting
		if i.runs() && (m.view.health == nil || m.view.health.Status == container.Healthy) {
			phase = scaler.PhaseReady
		}
		r := i.report(m.view, phase)
		r.Unhealthy = i.runs() && (m.view.unhealthy() || m.view.paused())
		r.Failure, r.Delay = i.failure, i.delay
		if h := healthDelay(m.view); r.Delay == nil && i.runs() && h != nil {
			r.Delay = h
		}
		all = append(all, r)
	}
	return all
}

func (i *instance) report(_ *view, phase scaler.Phase) scaler.Instance {
	r := scaler.Instance{ID: i.id, Phase: phase, Since: i.since, Adopted: i.adopted}
	if i.address != "" {
		r.Network, r.Address = "tcp", i.address
	}
	return r
}

// healthFailures are the reasons for a wait, one each, so that equal reports are
// equal.
var (
	healthStarting = &scaler.Failure{
		Reason: scaler.ReasonTimeout, Short: "the container's health check has not passed yet",
		Detail: "Docker runs a health check each interval (30s by default); on Podman it needs systemd. `ready tcp` and `ready http` do not wait for it",
	}
	healthFailing = &scaler.Failure{Reason: scaler.ReasonTimeout, Short: "the container's health check fails"}
)

// healthDelay says what a container waits for that has a health check.
func healthDelay(v *view) *scaler.Failure {
	switch {
	case v == nil || v.health == nil || v.health.Status == container.Healthy:
		return nil
	case v.health.Status == container.Unhealthy:
		return healthFailing
	}
	return healthStarting
}

// name names the container in the ids of its instances: as the engine does, or
// as Usher does before it is made.
func (m *member) name() string {
	if m.tag != "" {
		return m.tag
	}
	return short(m.id)
}

// waits says whether m was made ahead, and waits for its start.
func (m *member) waits() bool {
	return m.made && m.instance == nil && m.leaving == nil && m.dying == nil && !m.discard && m.view != nil && m.view.state == container.StateCreated
}

// leave marks an instance as one that is to stop. The lock is held.
func (m *member) leave(i *instance) {
	if m.leaving == nil {
		m.leaving = i
	}
}

// observe takes in what was seen of a container; nil if it is gone. The lock is
// held.
func (r *runner) observe(m *member, v *view) {
	m.view, m.gone = v, v == nil
	if v != nil {
		if m.id == "" {
			m.id = v.id
		}
		if m.of == "" {
			m.of = v.labels[labelCopyOf]
		}
	}
	r.observeLeaving(m)
	switch i := m.instance; {
	case i != nil && i.runs():
		r.observeRunning(m, i)
	case i != nil && v.active() && m.leaving == nil && !m.discard:
		r.started(m, i)
	case i == nil && m.leaving == nil && m.dying == nil && v.active() && m.foreign && !m.discard:
		r.adopt(m)
	}
	if v == nil && m.id != "" && m.leaving == nil && m.dying == nil && !m.busy {
		r.drop(m)
	}
	r.restPaused(m)
	r.report()
	if r.known {
		r.work(m)
	}
}

// observeLeaving looks whether what was to stop has. The lock is held.
func (r *runner) observeLeaving(m *member) {
	i, v := m.leaving, m.view
	switch {
	case i == nil:
		return
	case !i.runs() && (v.active() || m.busy):
		// It was to stop before it was started: what comes of that is stopped.
		return
	case v.active() && (v.started == i.started || m.busy):
		return
	case v.paused() && !m.pausing && v.started == i.started:
		return
	}
	m.leaving = nil
	m.refused = time.Time{}
	// A start from now on is not of Usher's making.
	m.foreign = true
	r.end(i, nil)
}

// observeRunning looks at what became of an instance that runs. The lock is
// held.
func (r *runner) observeRunning(m *member, i *instance) {
	v := m.view
	switch {
	case v == nil:
		m.instance = nil
		r.end(i, goneFailure(short(m.id)))
	case !v.runs():
		m.instance = nil
		r.died(m, i)
	case v.started != i.started:
		// It has ended and was started again in between.
		m.instance = nil
		f := &scaler.Failure{Reason: scaler.ReasonExit, Short: "the container was restarted", Detail: "container " + v.name + " has ended and was started again"}
		if fights(v) {
			f.Detail += " by its restart policy (" + string(v.restart) + "): with `restart: \"no\"` Usher alone decides"
		}
		r.end(i, f)
		m.foreign = true
		if v.active() {
			r.adopt(m)
		}
	case i.address == "" && i.failure == nil && v.active():
		r.locate(m, i)
	}
}

// started takes note that the engine has started what was to run. The lock is
// held.
func (r *runner) started(m *member, i *instance) {
	i.started, i.delay = m.view.started, nil
	r.locate(m, i)
	i.answered()
	r.ahead()
}

// locate finds the address of an instance. The lock is held.
func (r *runner) locate(m *member, i *instance) {
	address, f := r.engine.route(m.view, r.plan)
	i.address, i.failure = address, f
}

// adopt takes note of an instance that something else has started. The lock is
// held.
func (r *runner) adopt(m *member) {
	i := newInstance(r.ctx, m.name(), m.view.since())
	i.adopted, i.listed = !r.known, true
	m.instance = i
	r.started(m, i)
}

// died reads the last words of an instance that has ended by itself. Meanwhile
// it counts as stopping. The lock is held.
func (r *runner) died(m *member, i *instance) {
	v := m.view
	m.foreign = true
	if signal := r.engine.kills[m.id]; asksToStop(v, signal) {
		delete(r.engine.kills, m.id)
		m.dying = i
		r.report()
		m.dying = nil
		r.end(i, nil)
		return
	}
	m.dying = i
	if r.closed {
		m.dying = nil
		return
	}
	r.jobs.Go(func() {
		output := r.lastOutput(r.ctx, v)
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		if m.dying != i {
			return
		}
		m.dying = nil
		r.end(i, exitFailure(v, output))
		if m.made {
			m.discard = true
		}
		r.observe(m, m.view)
	})
}

// asksToStop says whether a signal that was sent to the container asked it to
// stop, as `docker stop` does.
func asksToStop(v *view, signal string) bool {
	switch signal {
	case "":
		return false
	case "15", "SIGTERM", "TERM":
		return true
	}
	return v.stopSignal != "" && (signal == v.stopSignal || "SIG"+signal == v.stopSignal)
}

// end reports an instance for the last time. The lock is held.
func (r *runner) end(i *instance, f *scaler.Failure) {
	i.cancel()
	if !i.listed {
		// The order that it is for has not returned yet.
		i.failure = f
		i.answered()
		return
	}
	i.answered()
	last := i.report(nil, scaler.PhaseEnded)
	last.Failure = f
	r.endings = append(r.endings, last)
}

// drop forgets a container that is gone. The lock is held.
func (r *runner) drop(m *member) {
	if m.until != nil {
		m.until.Stop()
	}
	if i := m.instance; i != nil {
		m.instance = nil
		r.end(i, &scaler.Failure{Reason: scaler.ReasonNotFound, Short: "the container was removed", Detail: "container " + short(m.id) + " was removed before it was started"})
	}
	for k, o := range r.members {
		if o == m {
			r.members = append(r.members[:k:k], r.members[k+1:]...)
			break
		}
	}
	r.short = false
	r.missed()
	r.ahead()
}

// missed takes note of whether any container is left. The lock is held.
func (r *runner) missed() {
	if !r.known || r.plan.form == formImage {
		return
	}
	for _, s := range r.engine.views {
		// It may be an earlier revision's still.
		if v := s.view; v != nil && r.plan.selects(v.id, v.name, v.labels) {
			r.absent = nil
			return
		}
	}
	if r.absent == nil {
		r.absent = r.plan.missing()
	}
	r.dropCopies()
}

// restPaused starts the time after which a paused container is stopped, or ends
// it. The lock is held.
func (r *runner) restPaused(m *member) {
	rests := m.view.paused() && m.instance == nil && m.leaving == nil && !r.closed && r.plan.pause && r.plan.stopPaused > 0
	switch {
	case rests && m.until == nil:
		m.until = time.AfterFunc(r.plan.stopPaused, func() {
			r.engine.mu.Lock()
			defer r.engine.mu.Unlock()
			m.until = nil
			if m.view.paused() && m.instance == nil && m.leaving == nil && !r.closed {
				m.leaving = &instance{started: m.view.started, begun: make(chan struct{}), cancel: func() {}, stopTimeout: pausedStopTimeout}
				m.pausing = false
				r.work(m)
			}
		})
	case !rests && m.until != nil:
		m.until.Stop()
		m.until = nil
	}
}

// pausedStopTimeout is the time that a container gets to stop which was paused
// for long.
const pausedStopTimeout = 10 * time.Second
