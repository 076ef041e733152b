package docker

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// engine is the connection to one engine, shared by all revisions of all
// services on it and by discoveries: a client, the event stream, and what is known of the
// containers that they mean.
//
// Its lock guards all that the runners on it know, too: a container can become
// the concern of another runner.
type engine struct {
	access access
	uses   int // guarded by engines

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the watch has ended
	kicks  chan struct{} // size 1: look at everything now

	mu       sync.Mutex
	facts    facts
	runners  []*runner
	searches []*search // discoveries
	views    map[string]*seen
	calls    uint64            // inspections and lists so far
	known    bool              // listed at least once
	outage   *scaler.Failure   // the engine cannot be asked
	changed  chan struct{}     // closed when known or outage has changed
	kills    map[string]string // the signals that were sent to containers lately
}

// seen is the last that was seen of a container.
type seen struct {
	view *view
	call uint64 // the inspection that saw it
}

// The times of the watch.
const (
	callTimeout  = 5 * time.Second  // for a call that reads
	aliveTimeout = 2 * time.Second  // for a sign of life
	resync       = 30 * time.Second // everything is looked at so often
	streamWait   = 2 * time.Second  // how long the start of the event stream is waited for
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// engines are those in use in this process.
var engines = struct {
	sync.Mutex
	byKey map[string]*engine
}{byKey: make(map[string]*engine)}

// clients are those of the engines. They are no fields: a type that reflection
// can reach from an interface keeps all of its methods in the program, and those
// of a client are half a megabyte.
var clients = struct {
	sync.Mutex
	of map[*engine]*client.Client
}{of: make(map[*engine]*client.Client)}

// clientOf returns the client of an engine, or nil if it was never reached.
func clientOf(e *engine) *client.Client {
	clients.Lock()
	defer clients.Unlock()
	return clients.of[e]
}

// exchange gives an engine another client, and returns the one before.
func exchange(e *engine, c *client.Client) *client.Client {
	clients.Lock()
	defer clients.Unlock()
	before := clients.of[e]
	if c == nil {
		delete(clients.of, e)
	} else {
		clients.of[e] = c
	}
	return before
}

// acquire returns the connection for an access; release gives it back.
func acquire(a access) *engine {
	engines.Lock()
	defer engines.Unlock()
	e := engines.byKey[a.key()]
	if e == nil {
		e = &engine{
			access: a, done: make(chan struct{}), kicks: make(chan struct{}, 1),
			views: make(map[string]*seen), changed: make(chan struct{}), kills: make(map[string]string),
		}
		e.ctx, e.cancel = context.WithCancel(context.Background())
		engines.byKey[a.key()] = e
		go e.run()
	}
	e.uses++
	return e
}

// release gives the connection back. The last one ends it, and waits for that.
func (e *engine) release() {
	engines.Lock()
	e.uses--
	last := e.uses == 0
	if last {
		delete(engines.byKey, e.access.key())
	}
	engines.Unlock()
	if !last {
		return
	}
	e.cancel()
	<-e.done
	if c := exchange(e, nil); c != nil {
		_ = c.Close() // it has nothing but idle connections
	}
}

// kick has everything looked at now.
func (e *engine) kick() {
	select {
	case e.kicks <- struct{}{}:
	default:
	}
}

// api returns the client, or the failure of an engine that could never be
// reached.
func (e *engine) api() (*client.Client, error) {
	if c := clientOf(e); c != nil {
		return c, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.outage != nil {
		return nil, e.outage
	}
	return nil, &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the container engine was not reached yet"}
}

// logger returns a logger of one of the services on the engine.
func (e *engine) logger() *slog.Logger {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.runners) > 0 {
		return e.runners[len(e.runners)-1].env.Logger()
	}
	return slog.New(slog.DiscardHandler)
}

// join makes r the newest runner, and tells it what is known.
func (e *engine) join(r *runner) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runners = append(e.runners, r)
	if e.known {
		// Its containers may not have been looked at, because no other runner
		// means them.
		e.kick()
	}
	if e.outage != nil {
		r.report()
	}
}

// leave takes r off the engine. Its containers become others' concern.
func (e *engine) leave(r *runner) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runners = slices.DeleteFunc(e.runners, func(o *runner) bool { return o == r })
	if len(e.runners) > 0 && len(r.members) > 0 {
		e.kick()
	}
}

// inspect looks at a container, and lets all that it concerns know. A container
// that is gone has no view.
func (e *engine) inspect(ctx context.Context, id string) (*view, error) {
	c, err := e.api()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.calls++
	call := e.calls
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	switch {
	case err == nil:
	case isNotFound(err):
		e.take(id, nil, call)
		return nil, nil
	default:
		return nil, err
	}
	v := newView(&res.Container)
	e.take(v.id, v, call)
	return v, nil
}

// assume takes in what a call has made of a container, unless an inspection that
// began later says something else.
func (e *engine) assume(id string, v *view) {
	e.mu.Lock()
	e.calls++
	call := e.calls
	e.mu.Unlock()
	e.take(id, v, call)
}

// take takes in what an inspection said, unless a later one has said something.
func (e *engine) take(id string, v *view, call uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.views[id]
	if before != nil && before.call > call {
		return
	}
	if v == nil && before == nil {
		return
	}
	e.views[id] = &seen{v, call}
	e.observe(id, v)
	if v == nil {
		delete(e.kills, id)
	}
}

// observe tells the runner that a container belongs to. A new one belongs to
// the newest runner that means it. The lock is held.
func (e *engine) observe(id string, v *view) {
	for _, r := range e.runners {
		if m := r.member(id); m != nil {
			r.observe(m, v)
			return
		}
	}
	if v == nil {
		return
	}
	for _, r := range e.runners {
		if m := r.tagged(v.labels); m != nil {
			r.observe(m, v)
			return
		}
	}
	for _, r := range slices.Backward(e.runners) {
		if r.wants(v.id, v.name, v.labels) {
			r.observe(r.add(v), v)
			return
		}
	}
}

// claim gives r the containers that it means and that rest with an earlier
// revision. It returns one that does not rest, if there is one. The lock is held.
func (e *engine) claim(r *runner) (taken *runner) {
	for _, o := range e.runners {
		if o == r {
			continue
		}
		for _, m := range slices.Clone(o.members) {
			switch v := m.view; {
			case m.made || v == nil || !r.plan.selects(v.id, v.name, v.labels):
			case m.busy || m.instance != nil || m.leaving != nil || m.dying != nil:
				taken = o
			default:
				// Also of another service: two that mean one container take turns.
				o.members = slices.DeleteFunc(o.members, func(x *member) bool { return x == m })
				r.observe(r.add(v), v)
			}
		}
	}
	// And those of a revision that was closed a moment ago.
	for id, s := range e.views {
		v := s.view
		if v == nil || !r.plan.selects(v.id, v.name, v.labels) {
			continue
		}
		if !slices.ContainsFunc(e.runners, func(o *runner) bool { return o.member(id) != nil }) {
			r.observe(r.add(v), v)
		}
	}
	return taken
}

// concerns says whether a runner means the container. The lock is held.
func (e *engine) concerns(id, name string, labels map[string]string) bool {
	return slices.ContainsFunc(e.runners, func(r *runner) bool {
		return r.member(id) != nil || r.wants(id, name, labels)
	})
}

// tell has every runner report. The lock is held.
func (e *engine) tell() {
	for _, r := range e.runners {
		r.report()
	}
}

// settle publishes that known or outage has changed. The lock is held.
func (e *engine) settle() {
	close(e.changed)
	e.changed = make(chan struct{})
	e.tell()
	e.pokeSearches()
}

// ready waits until the engine has been listed, and returns the failure if it
// cannot be asked.
func (e *engine) ready(ctx context.Context) *scaler.Failure {
	for {
		e.mu.Lock()
		known, outage, changed := e.known, e.outage, e.changed
		e.mu.Unlock()
		switch {
		case outage != nil:
			e.kick()
			return outage
		case known:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the container engine does not answer in time", Err: ctx.Err()}
		}
	}
}

// alive asks the engine for a sign of life. Without one everything is looked at,
// which finds an outage.
func (e *engine) alive(ctx context.Context) error {
	c, err := e.api()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	if _, err := c.Ping(ctx, client.PingOptions{}); err != nil {
		e.kick()
		return err
	}
	return nil
}
