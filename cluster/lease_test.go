package cluster

import (
	"fmt"
	"testing"
	"time"
)

func TestALeaseIsOverWhenEitherClockSaysSo(t *testing.T) {
	var l Lease
	end := Instant{Mono: 1000, Wall: 5000}
	l.set(end)
	for name, c := range map[string]struct {
		now  Instant
		want bool
	}{
		"before the end":                          {Instant{Mono: 999, Wall: 4999}, true},
		"at the end":                              {Instant{Mono: 1000, Wall: 5000}, false},
		"the machine was suspended":               {Instant{Mono: 10, Wall: 5000}, false},
		"the wall clock was set back":             {Instant{Mono: 1000, Wall: 1}, false},
		"the wall clock was set back, in between": {Instant{Mono: 999, Wall: 1}, true},
	} {
		if got := l.MayWrite(c.now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestACaddyThatHasJustStartedHasNoLease(t *testing.T) {
	base := time.Now()
	now := InstantOf(base.Add(time.Second), base)
	n := New(Peer{ID: "a", Boot: "a"}, Options{}, now)
	if n.Lease().MayWrite(now) {
		t.Error("a request may start before the Caddy belongs to a cluster")
	}
}

func TestAnInstantHasBothClocks(t *testing.T) {
	base := time.Now()
	then := base.Add(3 * time.Second)
	if got := InstantOf(then, base); got.Mono != int64(3*time.Second) || got.Wall != then.UnixNano() {
		t.Errorf("%+v", got)
	}
}

func TestTheLastLookBeforeAWriteAllocatesNothing(t *testing.T) {
	var l Lease
	l.set(Instant{Mono: never, Wall: never})
	base := time.Now()
	if n := testing.AllocsPerRun(1000, func() { l.MayWrite(InstantOf(time.Now(), base)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAPeerThatComesMovesOnlyItsOwnPart(t *testing.T) {
	peers := []Peer{{ID: "caddy-0", Boot: "p"}, {ID: "caddy-1", Boot: "q"}, {ID: "caddy-2", Boot: "r"}}
	counts := make(map[string]int)
	for k := range 3000 {
		id := fmt.Sprintf("web-5d9c-%d", k)
		before, after := rendezvous(id, peers[:2]), rendezvous(id, peers)
		counts[after]++
		if after != before && after != "r" {
			t.Fatalf("%s moved from %s to %s", id, before, after)
		}
	}
	for boot, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("%s has %d of 3000 instances", boot, n)
		}
	}
}

func TestAViewThatNoCaddyCanHaveWrittenIsNotFollowed(t *testing.T) {
	a, b := Peer{ID: "a", Boot: "a"}, Peer{ID: "b", Boot: "b"}
	for name, v := range map[string]View{
		"a leader that is no member": {Number: 9, Leader: "x", Members: []Peer{a, b}},
		"members out of order":       {Number: 9, Leader: "a", Members: []Peer{b, a}},
		"a member twice":             {Number: 9, Leader: "a", Members: []Peer{a, a}},
		"members without a leader":   {Number: 9, Members: []Peer{a}},
		"a number near the end":      {Number: 1 << 63, Leader: "a", Members: []Peer{a}},
	} {
		t.Run(name, func(t *testing.T) {
			n := New(a, Options{}, Instant{Mono: 1, Wall: 1})
			id := firstRead(t, n.Step(Instant{Mono: 2, Wall: 2}, Tick{}))
			outputs := n.Step(Instant{Mono: 3, Wall: 3}, ReadDone{ID: id, View: v})
			if n.View().Number != 0 {
				t.Fatalf("it follows %+v", n.View())
			}
			for _, o := range outputs {
				if f, ok := o.(Forgotten); ok && f.Found.Equal(v) {
					return
				}
			}
			t.Error("nobody is told")
		})
	}
}

func firstRead(t *testing.T, outputs []Output) uint64 {
	t.Helper()
	for _, o := range outputs {
		if r, ok := o.(Read); ok {
			return r.ID
		}
	}
	t.Fatal("the view is not read")
	return 0
}

func BenchmarkMayWrite(b *testing.B) {
	var l Lease
	l.set(Instant{Mono: never, Wall: never})
	base := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if !l.MayWrite(InstantOf(time.Now(), base)) {
			b.Fatal("no")
		}
	}
}
