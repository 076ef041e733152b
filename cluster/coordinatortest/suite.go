package coordinatortest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
)

// Name is the name of the cluster in the suite.
const Name = "conformance"

// Subject is a store under test, with the system below it. Each check of the
// suite gets one of its own, with an object of its own. A field that is nil or
// empty stands for what the system cannot do: the checks that need it are
// skipped.
type Subject struct {
	// Open returns a store of the object, with connections of its own, as
	// another Caddy would have. They go to address instead of Server, if it is
	// not empty. The suite closes it. Required.
	Open func(t testing.TB, address string) coordinator.Store

	// Write puts data in the place of the object, whatever is there. Required.
	Write func(t testing.TB, data []byte)

	// Delete removes the object. Required.
	Delete func(t testing.TB)

	// Server is where the system listens, as host:port. The suite puts a proxy
	// before it.
	Server string

	// Stop ends the system until start is called, which brings it back with
	// what it had stored.
	Stop func(t testing.TB) (start func())

	// Freeze makes the system accept calls and answer none until thaw is
	// called.
	Freeze func(t testing.TB) (thaw func())

	// Brief is the deadline of calls that cannot succeed. Default: 1 s.
	Brief time.Duration

	// Patience is how long the suite waits for anything else. Default: 30 s.
	Patience time.Duration
}

// Run runs the suite. It calls subject for each check; what it sets up is to
// be cleaned up with t.Cleanup.
func Run(t *testing.T, subject func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			s := bench{Subject: subject(t), T: t}
			if s.Open == nil || s.Write == nil || s.Delete == nil {
				t.Fatal("a Subject needs Open, Write and Delete")
			}
			if s.Brief == 0 {
				s.Brief = time.Second
			}
			if s.Patience == 0 {
				s.Patience = 30 * time.Second
			}
			switch {
			case c.needs&server != 0 && s.Server == "":
				t.Skip("the system has no address")
			case c.needs&stop != 0 && s.Stop == nil:
				t.Skip("the system cannot be stopped")
			case c.needs&freeze != 0 && s.Freeze == nil:
				t.Skip("the system cannot be frozen")
			}
			c.run(&s)
		})
	}
}

// check is one promise.
type check struct {
	name  string
	needs int
	run   func(s *bench)
}

// What a check needs.
const (
	server = 1 << iota
	stop
	freeze
)

// checks are in the order in which a new store should pass them.
var checks = []check{
	{"no object is no view", 0, checkNone},
	{"the first view", 0, checkFirst},
	{"a view is replaced and all of it comes back", 0, checkReplace},
	{"another view than the expected one stays", 0, checkConflict},
	{"one swap of many wins each number", 0, checkConcurrent},
	{"an object that cannot be read is an error and stays", 0, checkUndecodable},
	{"a deleted object is no view", 0, checkDeleted},
	{"a revision is good for one write", 0, checkRevision},
	{"a context that has ended fails and changes nothing", 0, checkCancelled},
	{"nothing is done after Close", 0, checkClosed},
	{"Close ends a call on its way", server, checkCloseInCall},
	{"a read without an answer ends with its context", server, checkSilentRead},
	{"a swap without an answer is unknown", server, checkSilentSwap},
	{"a swap whose connection breaks after sending is unknown", server, checkBroken},
	{"a connection that has gone silent is replaced", server, checkStalled},
	{"a result never says more than what is known", server, checkStorm},
	{"a stopped system fails and is used again when it is back", stop, checkStopped},
	{"a frozen system fails in time and is used again when it goes on", freeze, checkFrozen},
}

// bench is a Subject within a check.
type bench struct {
	Subject
	*testing.T
}

// open returns a store, which is closed with the test.
func (s *bench) open(address string) coordinator.Store {
	s.Helper()
	store := s.Open(s.T, address)
	s.Cleanup(func() {
		if err := store.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	})
	return store
}

// direct returns a coordinator without a proxy.
func (s *bench) direct() coordinator.Coordinator {
	s.Helper()
	return coordinator.Over(Name, s.open(""))
}

// swapThrough returns a coordinator behind a proxy, whose swaps call before
// between their read and their write.
func (s *bench) swapThrough(p *proxy, before func()) coordinator.Coordinator {
	s.Helper()
	return coordinator.Over(Name, gate{s.open(p.address), before})
}

// again returns what brings the system back. It is called at the end at the
// latest: the next check needs the system.
func (s *bench) again(f func()) func() {
	f = sync.OnceFunc(f)
	s.Cleanup(f)
	return f
}

// gate is a store that is told of each write.
type gate struct {
	coordinator.Store
	before func()
}

func (g gate) Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	g.before()
	return g.Store.Put(ctx, value, revision)
}

// soon is a context for what should succeed.
func (s *bench) soon() context.Context { return s.within(s.Patience) }

// briefly is a context for what cannot succeed.
func (s *bench) briefly() context.Context { return s.within(s.Brief) }

func (s *bench) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	s.Cleanup(cancel)
	return ctx
}

// inTime calls f and fails if it does not return.
func (s *bench) inTime(what string, f func()) {
	s.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(s.Brief + s.Patience):
		s.Fatalf("%s does not return", what)
	}
}

func (s *bench) read(c coordinator.Coordinator) cluster.View {
	s.Helper()
	v, err := c.Read(s.soon())
	if err != nil {
		s.Fatalf("Read: %v", err)
	}
	return v
}

func (s *bench) wantRead(c coordinator.Coordinator, want cluster.View) {
	s.Helper()
	if got := s.read(c); !got.Equal(want) {
		s.Errorf("Read returned %v, want %v", got, want)
	}
}

// awaitRead waits until a read succeeds, and returns the view.
func (s *bench) awaitRead(c coordinator.Coordinator, ok func(cluster.View) bool) cluster.View {
	s.Helper()
	end := time.Now().Add(s.Patience)
	for {
		v, err := c.Read(s.briefly())
		if err == nil && ok(v) {
			return v
		}
		if time.Now().After(end) {
			s.Fatalf("after %v, Read returns %v, error %v", s.Patience, v, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *bench) swap(c coordinator.Coordinator, expect, next cluster.View) {
	s.Helper()
	if result, found, err := c.Swap(s.soon(), expect, next); result != cluster.Swapped || err != nil {
		s.Fatalf("Swap to %d: %s, found %v, error %v; want it swapped", next.Number, word(result), found, err)
	}
}

func (s *bench) wantConflict(c coordinator.Coordinator, expect, next, want cluster.View) {
	s.Helper()
	result, found, err := c.Swap(s.soon(), expect, next)
	if result != cluster.Conflict || err != nil || !found.Equal(want) {
		s.Errorf("Swap from %v to %v: %s, found %v, error %v; want a conflict with %v", expect, next, word(result), found, err, want)
	}
}

// wantResult calls Swap and fails unless the result is one of want, with an
// error, and in time.
func (s *bench) wantResult(ctx context.Context, c coordinator.Coordinator, expect, next cluster.View, want ...cluster.SwapResult) {
	s.Helper()
	s.inTime("Swap", func() {
		result, _, err := c.Swap(ctx, expect, next)
		for _, w := range want {
			if result == w && err != nil {
				return
			}
		}
		s.Errorf("Swap: %s, error %v; want %s and an error", word(result), err, word(want[0]))
	})
}

func (s *bench) wantReadError(ctx context.Context, c coordinator.Coordinator) {
	s.Helper()
	s.inTime("Read", func() {
		if v, err := c.Read(ctx); err == nil || !v.Equal(cluster.View{}) {
			s.Errorf("Read returned %v, error %v; want an error", v, err)
		}
	})
}

func word(r cluster.SwapResult) string {
	switch r {
	case cluster.Swapped:
		return "swapped"
	case cluster.Conflict:
		return "conflict"
	case cluster.Failed:
		return "failed"
	case cluster.Unknown:
		return "unknown"
	}
	return fmt.Sprintf("result %d", r)
}

// view returns a view with this number, led by boot.
func view(number uint64, boot string) cluster.View {
	return cluster.View{Number: number, Leader: boot, Members: []cluster.Peer{{ID: "id of " + boot, Boot: boot, Address: "127.0.0.1:7443"}}}
}
