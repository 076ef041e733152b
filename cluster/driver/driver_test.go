package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

func TestThreeCaddysShareFewerSlotsThanTheyAre(t *testing.T) {
	w := newWorld(t, 1, 1)
	hosts := []*host{w.join("a"), w.join("b"), w.join("c")}
	leader := w.together(hosts...)
	served := make([]int, len(hosts))
	for k, h := range hosts {
		for range 50 { // one after the other: the slots have to come to each of them
			if err := h.do(t.Context(), func(string) { served[k]++ }); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := w.load(30, hosts...)
	defer stop()
	w.eventually("1000 requests are served", func() bool {
		var n uint64
		for _, h := range hosts {
			h.mu.Lock()
			n += h.arrivals
			h.mu.Unlock()
		}
		return n > 1000
	})
	if !leader.holds(func(h *host) bool { return h.handedOver > 0 })() {
		t.Error("slots were handed over, and the leader did not say how long that took")
	}
}

func TestALeaderThatEndsIsFollowedByAnother(t *testing.T) {
	w := newWorld(t, 2, 2)
	hosts := []*host{w.join("a", byProof), w.join("b", byProof), w.join("c", byProof)}
	leader := w.together(hosts...)
	w.known(hosts...)
	rest := slices.DeleteFunc(slices.Clone(hosts), func(h *host) bool { return h == leader })
	stop := w.load(12, rest...)
	defer stop()
	leader.d.Close() // without a word
	next := w.together(rest...)
	if next == leader {
		t.Fatal("the leader has ended")
	}
	for _, h := range rest {
		for range 20 {
			if err := h.do(t.Context(), func(string) {}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSlotsOfAMemberThatEndsAreUsedByTheOthers(t *testing.T) {
	w := newWorld(t, 4)
	a, b := w.join("a", byProof), w.join("b", byProof)
	leader := w.together(a, b)
	w.known(a, b)
	other := beside(leader, a, b)
	// The other one holds a slot, with a request inside.
	inside, finish := make(chan struct{}), make(chan struct{})
	go func() {
		_ = other.do(t.Context(), func(string) { close(inside); <-finish })
	}()
	<-inside
	close(finish) // its requests end with the process
	other.d.Close()
	stop := w.load(8, leader)
	defer stop()
	w.eventually("the leader has all four slots", leader.holds(func(h *host) bool { return h.inUse["i0"] == 4 }))
}

func TestLeavingGivesAllBack(t *testing.T) {
	w := newWorld(t, 2, 2)
	a, b := w.join("a"), w.join("b")
	leader := w.together(a, b)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := leader.d.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	leader.d.Close()
	other := beside(leader, a, b)
	w.together(other)
	stop := w.load(8, other)
	defer stop()
	w.eventually("the other one has all four slots", other.holds(func(h *host) bool { return h.inUse["i0"] == 2 && h.inUse["i1"] == 2 }))
}

// A Caddy that leaves while the coordinator is away cannot be taken out of the
// view. It does not wait for that once its slots are given back.
func TestLeavingDoesNotWaitForACoordinatorThatIsAway(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.join("a"), w.join("b")
	leader := w.together(a, b)
	w.store.set(true, nil)
	for _, c := range []*host{beside(leader, a, b), leader} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		began := time.Now()
		if err := c.d.Leave(ctx); !errors.Is(err, errNoNote) {
			t.Errorf("it left: %v, after %s", err, time.Since(began))
		}
		cancel()
		c.d.Close()
	}
}

func TestOneThatIsClosedCannotLeave(t *testing.T) {
	w := newWorld(t, 1)
	a := w.join("a")
	w.together(a)
	a.d.Close()
	if err := a.d.Leave(t.Context()); err == nil {
		t.Error("no other Caddy knows, and it does not say so")
	}
}

func TestWithoutACoordinatorAllServeOn(t *testing.T) {
	for name, away := range map[string]func(*world){
		"refuses": func(w *world) { w.store.set(true, nil) },
		"silent": func(w *world) {
			silent := make(chan struct{})
			w.t.Cleanup(func() { close(silent) })
			w.store.set(false, silent)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 1)
			a, b := w.join("a"), w.join("b")
			w.together(a, b)
			away(w)
			stop := w.load(6, a, b)
			time.Sleep(3 * options.Lease) // longer than any lease that was given before
			before := a.d.Status().LeaseLeft > 0 && b.d.Status().LeaseLeft > 0
			served := stop()
			if !before || served < 100 {
				t.Errorf("leases %v, %d served", before, served)
			}
			w.store.set(false, nil)
		})
	}
}

func TestAMemberWithoutTheOthersLosesItsLease(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.join("a"), w.join("b")
	leader := w.together(a, b)
	member := beside(leader, a, b)
	// From here on no connection comes to be.
	w.store.set(true, nil)
	leader.d.Close()
	w.eventually("it has no lease", member.holds(func(h *host) bool { return h.isolated && !h.d.MayWrite() }))
	w.store.set(false, nil)
	w.eventually("it leads, and has a lease", member.holds(func(h *host) bool { return h.leads && !h.isolated }))
}

func TestAnotherDefinitionIsTold(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join("a"), w.join("b")
	a.d.Define([]cluster.Definition{{Service: service, Hash: "one"}})
	b.d.Define([]cluster.Definition{{Service: service, Hash: "one"}})
	leader := w.together(a, b)
	member, id := a, "a"
	if leader == a {
		member, id = b, "b"
	}
	member.d.Define([]cluster.Definition{{Service: service, Hash: "two"}})
	for _, h := range []*host{leader, member} {
		w.eventually("it differs", h.holds(func(h *host) bool { return h.differs[id] }))
	}
	member.d.Define([]cluster.Definition{{Service: service, Hash: "one"}})
	for _, h := range []*host{leader, member} {
		w.eventually("it no longer differs", h.holds(func(h *host) bool { return !h.differs[id] }))
	}
}

func TestAWithdrawnInstanceIsEmptyWhenTheLastRequestLeaves(t *testing.T) {
	w := newWorld(t, 3)
	a, b := w.join("a"), w.join("b")
	leader := w.together(a, b)
	member := beside(leader, a, b)
	inside, finish := make(chan struct{}), make(chan struct{})
	go func() {
		_ = member.do(context.Background(), func(string) { close(inside); <-finish })
	}()
	<-inside
	w.platform.mu.Lock()
	w.all[0].State = cluster.Withdrawn
	w.platform.mu.Unlock()
	leader.list()
	w.eventually("no request gets in", member.holds(func(h *host) bool { return h.slots["i0"] == 0 }))
	leader.mu.Lock()
	empty := slices.Contains(leader.empty, "i0")
	leader.mu.Unlock()
	if empty {
		t.Error("it is said to be empty, with a request inside")
	}
	close(finish)
	w.eventually("it is empty", leader.holds(func(h *host) bool { return slices.Contains(h.empty, "i0") }))
}

func TestSumsReachAllMembers(t *testing.T) {
	w := newWorld(t, 1)
	a, b := w.join("a"), w.join("b")
	w.together(a, b)
	ctx, cancel := context.WithCancel(t.Context())
	finish := make(chan struct{})
	done := make(chan struct{})
	for _, h := range []*host{a, a, b, b, b} {
		go func() {
			_ = h.do(ctx, func(string) { <-finish })
			done <- struct{}{}
		}()
	}
	for h, others := range map[*host]int{a: 3, b: 2} {
		w.eventually("four wait, and one is inside", h.holds(func(h *host) bool { return h.sum.Waiting == 4 && h.sum.InUse == 1 }))
		w.eventually("the others have asked for the rest", h.holds(func(h *host) bool { return h.others.Demand == others }))
	}
	close(finish)
	for range 5 {
		<-done
	}
	cancel()
}

func TestOneWithAnotherSecretStaysOutside(t *testing.T) {
	w := newWorld(t, 2)
	a := w.join("a")
	w.together(a)
	b := w.join("b", func(c *Config) {
		c.Identity, _ = link.FromSecret("another secret, which is long enough")
	})
	time.Sleep(2 * options.Lease)
	if s := b.d.Status(); s.LeaseLeft > 0 || b.d.MayWrite() {
		t.Errorf("it has a lease: %+v", s)
	}
	if s := a.d.Status(); s.LeaseLeft <= 0 {
		t.Error("the other one has none any more")
	}
}

func TestForgottenByAnOperator(t *testing.T) {
	w := newWorld(t, 2)
	w.store.view = cluster.View{Number: 7, Leader: "z-1", Members: []cluster.Peer{{ID: "z", Boot: "z-1", Address: "127.0.0.1:1"}}}
	a := w.join("a", byProof)
	time.Sleep(options.Lease)
	if s := a.d.Status(); s.LeaseLeft > 0 && s.Leads {
		t.Fatal("z may have requests inside")
	}
	w.eventually("a has all slots after the word", func() bool {
		a.d.Forget("z")
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.slots["i0"] == 2
	})
}

func TestWhoHasNoLeaseHasNoSlotsOnceItHasSettled(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.join("a"), w.join("b")
	leader := w.together(a, b)
	member := beside(leader, a, b)
	w.store.set(true, nil) // so it cannot take over
	leader.d.Close()
	w.eventually("its lease is over", func() bool { return !member.d.MayWrite() })
	member.d.Settle(t.Context())
	member.mu.Lock()
	defer member.mu.Unlock()
	if !member.isolated || member.slots["i0"] != 0 {
		t.Errorf("isolated %v, slots %v", member.isolated, member.slots)
	}
}

func TestNotesReachAllMembersAndThoseThatComeLater(t *testing.T) {
	w := newWorld(t, 1)
	a, b, c := w.join("a"), w.join("b"), w.join("c", func(c *Config) {
		c.Notes = []cluster.Note{{Key: "kept", Value: "from before", Stamp: cluster.Stamp{Count: 7, Boot: "x"}}}
	})
	w.together(a, b, c)
	all := []*host{a, b, c}
	for k, h := range all {
		h.d.Put("last word", string(rune('0'+k)))
		want := h.d.Note("last word")
		for _, other := range all {
			w.eventually("all have it", func() bool { return other.d.Note("last word") == want })
			w.eventually("all have what was kept", func() bool { return other.d.Note("kept").Value == "from before" })
		}
	}
	a.d.Take("last word")
	d := w.join("d")
	w.together(a, b, c, d)
	for _, h := range append(all, d) {
		w.eventually("it is gone everywhere", func() bool { return h.d.Note("last word").Gone })
	}
	w.eventually("the host of the last one has heard of it", d.holds(func(h *host) bool {
		return slices.ContainsFunc(h.noted, func(n cluster.Note) bool { return n.Key == "kept" && n.Value == "from before" })
	}))
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.noted) != 3 { // kept, and the last words of the two others
		t.Errorf("its host has heard of %+v", a.noted)
	}
}

func TestManyNotesGoInSeveralFrames(t *testing.T) {
	w := newWorld(t, 1)
	a := w.join("a")
	const many = 5000
	for k := range many {
		a.d.Put(fmt.Sprint("key ", k), strings.Repeat("x", 500))
	}
	b := w.join("b")
	w.together(a, b)
	w.eventually("the other one has all", func() bool { return len(b.d.Notes()) == many })
}
