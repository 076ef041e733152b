package marathon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// cluster is one set of connections to a cluster, shared by everything that
// has the same access to it: a client for each member, the preference among
// them, and the event stream.
type cluster struct {
	access  access
	members []*member
	uses    int // guarded by clusters

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when the stream has ended

	mu        sync.Mutex
	preferred *member // has answered last
	apps      map[*app]bool
	searches  []*search // discoveries
	streaming bool
	streamErr error
	warned    bool // of the present loss of the stream
}

// clusters are those in use in this process.
var clusters = struct {
	sync.Mutex
	byKey map[string]*cluster
}{byKey: make(map[string]*cluster)}

// acquire returns the connections for an access; release gives them back.
func acquire(a access) *cluster {
	clusters.Lock()
	defer clusters.Unlock()
	key := a.key()
	c := clusters.byKey[key]
	if c == nil {
		c = &cluster{access: a, apps: make(map[*app]bool), done: make(chan struct{})}
		for _, u := range a.urls {
			c.members = append(c.members, newMember(u, a))
		}
		c.preferred = c.members[0]
		c.ctx, c.cancel = context.WithCancel(context.Background())
		clusters.byKey[key] = c
		go c.listen()
	}
	c.uses++
	return c
}

// release gives the connections back. The last one ends them, and waits for
// that.
func (c *cluster) release() {
	clusters.Lock()
	c.uses--
	last := c.uses == 0
	if last {
		delete(clusters.byKey, c.access.key())
	}
	clusters.Unlock()
	if !last {
		return
	}
	c.cancel()
	<-c.done
	for _, m := range c.members {
		m.client.CloseIdleConnections()
	}
}

// attach makes the events of an app known to it.
func (c *cluster) attach(a *app) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apps[a] = true
}

func (c *cluster) detach(a *app) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.apps, a)
}

// interested returns the apps with an id, or all of them for "".
func (c *cluster) interested(id string) []*app {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*app
	for a := range c.apps {
		if id == "" || a.id == id {
			all = append(all, a)
		}
	}
	return all
}

// streams says whether events come in.
func (c *cluster) streams() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streaming
}

// inOrder returns the members, the one that answered last first.
func (c *cluster) inOrder() []*member {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := slices.Index(c.members, c.preferred)
	return slices.Concat(c.members[k:], c.members[:k])
}

func (c *cluster) prefer(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.preferred = m
}

// ask puts a question to one member after the other until one can tell.
func (c *cluster) ask(ctx context.Context, f func(context.Context, *member) error) error {
	return c.try(ctx, f, elsewhere)
}

// change has one member make a change. Another one is tried only if the change
// was certainly not made: a change that is sent twice can be refused because
// of itself, or be made twice.
func (c *cluster) change(ctx context.Context, f func(context.Context, *member) error) error {
	return c.try(ctx, f, unsent)
}

func (c *cluster) try(ctx context.Context, f func(context.Context, *member) error, next func(error) bool) error {
	// Closing ends what is under way.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	var all []error
	for _, m := range c.inOrder() {
		err := f(ctx, m)
		if err == nil {
			c.prefer(m)
			return nil
		}
		all = append(all, err)
		if ctx.Err() != nil {
			break
		}
		if !next(err) {
			if _, ok := errors.AsType[*statusError](err); ok {
				c.prefer(m)
			}
			break
		}
		// With a single failure of its own a member goes to the end of the
		// line, or each call would wait for one that hangs.
		c.demote(m)
	}
	if len(all) == 1 {
		return all[0]
	}
	return &triedError{all}
}

// triedError is what several members said to the same call. It counts as what
// the last one said: what those before it said led on to that one.
type triedError struct{ all []error }

func (e *triedError) Error() string {
	return fmt.Sprintf("%d members of the cluster were tried: %v", len(e.all), errors.Join(e.all...))
}

func (e *triedError) Unwrap() error { return e.all[len(e.all)-1] }

// demote prefers the member after m, if m is the preferred one.
func (c *cluster) demote(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.preferred == m {
		k := slices.Index(c.members, m)
		c.preferred = c.members[(k+1)%len(c.members)]
	}
}

// logger returns a logger of one of the services on the cluster, or of a
// discovery.
func (c *cluster) logger() *slog.Logger {
	for _, a := range c.interested("") {
		if l := a.logger(); l != nil {
			return l
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.searchLogger(); l != nil {
		return l
	}
	return slog.New(slog.DiscardHandler)
}

// sleep waits, and returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
