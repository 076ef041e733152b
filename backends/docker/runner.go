package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// runner is one revision of a service on an engine: the Scaler.
type runner struct {
	env    scaler.Env
	plan   *plan // guarded by the engine's lock; Update changes it
	engine *engine
	token  string // names this runner, on the labels of what it makes
	owned  bool
	given  bool   // its containers exist; Usher does not make them all
	name   string // of the engine, for the start budget

	// orders is full while an order is on its way. Close ends ctx, and with it
	// that order and the starts.
	orders chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	jobs   sync.WaitGroup

	// What follows is guarded by the engine's lock.
	closed   bool
	known    bool // everything was looked at once
	members  []*member
	endings  []scaler.Instance // to be reported once more
	short    bool              // more instances are wanted than there are containers
	absent   *scaler.Failure   // no container exists
	spoiled  *scaler.Failure   // the next container cannot be made
	retry    *time.Timer       // tries that again
	failures int               // of that, in a row
	warned   map[string]bool   // containers that were warned about
	told     *scaler.Report    // the last report
}

// revisions counts the runners of this process.
var revisions atomic.Uint64

func open(p *plan, env scaler.Env) *runner {
	r := &runner{
		env: env, plan: p, owned: p.owned(), given: p.form != formImage, name: "docker " + p.access.Host,
		token:  processToken + "-" + strconv.FormatUint(revisions.Add(1), 36),
		orders: make(chan struct{}, 1), warned: make(map[string]bool),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.engine = acquire(p.access)
	r.engine.join(r)
	return r
}

// Traits: the engine's machine does the work of a start. Its containers are a
// given set, which all revisions share, so a changed revision stops the old
// instances first.
func (r *runner) Traits() scaler.Traits {
	return scaler.Traits{Owned: r.owned, HoldsPlace: true, StopsFirst: r.given, Platform: r.name}
}

// member returns the member that is the container, or nil. The lock is held.
func (r *runner) member(id string) *member {
	for _, m := range r.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// tagged returns the member that r makes with these labels, or nil. The lock is
// held.
func (r *runner) tagged(labels map[string]string) *member {
	if labels[labelRun] != r.token {
		return nil
	}
	for _, m := range r.members {
		if m.tag == labels[labelTag] {
			return m
		}
	}
	return nil
}

// wants says whether a container that belongs to no runner is one of r's. The
// lock is held.
func (r *runner) wants(id, name string, labels map[string]string) bool {
	if r.closed {
		return false
	}
	if labels[labelCaddy] != "" {
		return r.owned && r.made(labels)
	}
	return r.plan.selects(id, name, labels)
}

// add makes a container a member. The lock is held.
func (r *runner) add(v *view) *member {
	m := &member{id: v.id, made: v.labels[labelCaddy] != "", foreign: true}
	r.members = append(r.members, m)
	if !m.made && fights(v) && !r.warned[v.id] {
		r.warned[v.id] = true
		r.env.Logger().Warn("the container has a restart policy: the engine starts it again when it ends by itself, and may start it when the engine starts; with `restart: \"no\"` Usher alone decides",
			"container", v.name, "restart", string(v.restart))
	}
	return m
}

// Scale starts and stops containers. It returns when the engine has accepted
// the starts: when it has shown a sign of life after they were sent, or has
// answered them. Stops go on afterwards.
func (r *runner) Scale(ctx context.Context, o scaler.Order) error {
	ctx, end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if f := r.engine.ready(ctx); f != nil {
		return f
	}
	e := r.engine
	e.mu.Lock()
	if !r.known {
		e.mu.Unlock()
		if err := r.await(ctx); err != nil {
			return err
		}
		e.mu.Lock()
	}
	for _, id := range o.Stop {
		r.stop(id, o.StopTimeout)
	}
	begun, missing := r.grow(o.Instances)
	var taken *runner
	if missing > 0 {
		if taken = e.claim(r); len(r.members) > 0 {
			more, left := r.grow(o.Instances)
			begun, missing = append(begun, more...), left
		}
	}
	r.short = missing > 0 && len(r.members) > 0
	r.report()
	for _, m := range r.members {
		r.work(m)
	}
	var refusal error
	switch {
	case missing == 0 || len(r.members) > 0:
	case taken != nil && taken.env.Service == r.env.Service:
		// An earlier revision runs them. It stops them first.
		refusal = scaler.ErrLater
	case taken != nil:
		refusal = inUse(r.plan, taken.env.Service)
	default:
		refusal = r.plan.missing()
	}
	e.mu.Unlock()
	if refusal != nil {
		return refusal
	}
	return r.accepted(ctx, begun)
}

// await waits until the containers of r were looked at.
func (r *runner) await(ctx context.Context) error {
	e := r.engine
	for {
		e.mu.Lock()
		known, outage, changed := r.known, e.outage, e.changed
		e.mu.Unlock()
		switch {
		case known:
			return nil
		case outage != nil:
			return outage
		}
		e.kick()
		select {
		case <-changed:
		case <-ctx.Done():
			return silent(ctx.Err())
		}
	}
}

// silent is the failure of an engine that does not answer.
func silent(err error) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonPlatform, Short: "the container engine does not answer in time",
		Detail: "what runs goes on serving; Usher tries again by itself", Err: err,
	}
}

// begin begins an order: it ends when ctx does or r is closed. end is called
// after it.
func (r *runner) begin(ctx context.Context) (order context.Context, end func(), err error) {
	select {
	case r.orders <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, silent(ctx.Err())
	}
	if r.ctx.Err() != nil {
		<-r.orders
		return nil, nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the backend is closed",
			Detail: "service " + r.env.Service + ", revision " + r.env.Revision + " takes no orders any more",
		}
	}
	order, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.ctx, cancel)
	return order, func() { stop(); cancel(); <-r.orders }, nil
}

// stop takes an instance out of service. The lock is held.
func (r *runner) stop(id string, timeout time.Duration) {
	for _, m := range r.members {
		if i := m.instance; i != nil && i.id == id {
			m.instance = nil
			i.stopTimeout = timeout
			m.pausing = r.plan.pause
			if m.view == nil {
				i.cancel() // it is being made
			}
			m.leave(i)
			r.observeLeaving(m)
			return
		}
	}
}

// grow gives containers that rest an instance, until there are n. It returns
// the new instances, and how many it could not make. The lock is held.
func (r *runner) grow(n int) (begun []*instance, missing int) {
	for _, m := range r.members {
		if m.instance != nil {
			n--
		}
	}
	for ; n > 0; n-- {
		m := r.pick()
		if m == nil {
			return begun, n
		}
		begun = append(begun, r.begins(m))
	}
	return begun, 0
}

// pick returns the container that is up first: a paused one before one that is
// stopped, and one that is there before one that has to be made. It returns nil
// if there is none. The lock is held.
func (r *runner) pick() *member {
	best, bestRank := (*member)(nil), 0
	for _, m := range r.members {
		if m.instance != nil || m.dying != nil || m.discard || m.leaving == nil && r.spent(m) {
			continue
		}
		rank := 1
		switch v := m.view; {
		case m.leaving != nil:
		case v.paused():
			rank = 4
		case v != nil && m.made:
			rank = 3
		default:
			rank = 2
		}
		if rank > bestRank {
			best, bestRank = m, rank
		}
	}
	// Containers of an image, and copies, stop for good.
	if best != nil && (bestRank > 1 || !r.owned || !best.made) {
		return best
	}
	return r.another()
}

// begins gives m an instance that is to be started. The lock is held.
func (r *runner) begins(m *member) *instance {
	i := newInstance(r.ctx, m.name(), time.Now())
	m.instance, m.foreign = i, false
	return i
}

// accepted waits until the engine has accepted the starts.
func (r *runner) accepted(ctx context.Context, begun []*instance) error {
	if len(begun) == 0 {
		return nil
	}
	alive := make(chan error, 1)
	r.jobs.Go(func() { alive <- r.engine.alive(ctx) })
	started := make(chan struct{})
	r.jobs.Go(func() {
		defer close(started)
		for _, i := range begun {
			select {
			case <-i.begun:
			case <-ctx.Done():
				return
			}
		}
	})
	var err error
	select {
	case err = <-alive:
		if err != nil {
			// It can still have started them.
			select {
			case <-started:
			case <-time.After(aliveTimeout / 4):
			}
		}
	case <-started:
	}
	return r.list(ctx, begun, err)
}

// list puts what was accepted on the list, and returns the failure of what was
// not.
func (r *runner) list(ctx context.Context, begun []*instance, ping error) error {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	var failed *scaler.Failure
	for _, i := range begun {
		switch {
		case !r.has(i):
			failed = i.failure
		case i.runs() || ping == nil && ctx.Err() == nil:
			i.listed = true
		default:
			// Not accepted, for all that is known. What comes of it shows.
			i.cancel()
			r.withdraw(i)
			failed = silent(context.Cause(ctx))
			if ping != nil {
				failed = callFailure(ping)
			}
			i.failure = failed
			i.answered()
		}
	}
	r.report()
	if failed != nil {
		return failed
	}
	return nil
}

// withdraw takes an instance back that was never listed. The lock is held.
func (r *runner) withdraw(i *instance) {
	for _, m := range r.members {
		if m.instance == i {
			m.instance, m.foreign = nil, true
		}
	}
}

// has says whether an instance is still to run. The lock is held.
func (r *runner) has(i *instance) bool {
	return i != nil && slices.ContainsFunc(r.members, func(m *member) bool { return m.instance == i })
}

// listed takes note that the engine was looked at. The lock is held.
func (r *runner) listed() {
	r.known = true
	r.absent = nil
	r.missed()
	for _, m := range r.members {
		r.work(m)
	}
	r.checkImage()
	r.ahead()
}

// Update takes another configuration over that makes the same instances.
func (r *runner) Update(b scaler.Backend) bool {
	next, ok := b.(*Backend)
	if !ok || next.plan == nil {
		return false
	}
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	if next.plan.fingerprint() != r.plan.fingerprint() {
		return false
	}
	r.plan = next.plan
	return true
}

// report tells all that there is, if it is not what was told last. The lock is
// held.
func (r *runner) report() {
	e := r.engine
	if r.closed || !r.known && e.outage == nil {
		return
	}
	rep := scaler.Report{Trouble: e.outage}
	for _, m := range r.members {
		rep.Instances = m.instances(rep.Instances)
		if m.instance != nil && m.instance.listed {
			rep.Desired++
		}
	}
	rep.Instances = append(rep.Instances, r.endings...)
	ended := len(r.endings) > 0
	r.endings = nil
	if rep.Trouble == nil {
		rep.Trouble = r.trouble()
	}
	if r.short && rep.Desired > 0 {
		rep.Hold = &scaler.Hold{More: true, Failure: r.tooFew()}
	}
	if !ended && r.told != nil && same(*r.told, rep) {
		return
	}
	told := rep
	told.Instances = slices.Clone(rep.Instances)
	r.told = &told
	if ended {
		r.told = nil
	}
	r.env.Report(rep)
}

// trouble is what keeps containers from being made or started. The lock is held.
func (r *runner) trouble() *scaler.Failure {
	if r.absent != nil {
		return r.absent
	}
	return r.spoiled
}

// tooFew says that there are fewer containers than instances are wanted. The
// lock is held.
func (r *runner) tooFew() *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonQuota, Short: fmt.Sprintf("all %d containers of the service run", len(r.members)),
		Detail: fmt.Sprintf("more instances are wanted than the %s has containers: make more, lower `instances`, or let Usher make copies with `copies on`", r.plan),
	}
}

// same says whether two reports say the same.
func same(a, b scaler.Report) bool {
	return slices.Equal(a.Instances, b.Instances) && a.Desired == b.Desired && a.Trouble == b.Trouble && (a.Hold == nil) == (b.Hold == nil)
}

// Interface guards.
var (
	_ scaler.Scaler    = (*runner)(nil)
	_ scaler.Confirmer = (*runner)(nil)
	_ scaler.Verifier  = (*runner)(nil)
	_ scaler.Updater   = (*runner)(nil)
	_ scaler.Diagnoser = (*runner)(nil)
)
