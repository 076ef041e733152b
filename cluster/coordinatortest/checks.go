package coordinatortest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
)

func checkNone(s *bench) {
	c := s.direct()
	s.wantRead(c, cluster.View{})
	s.wantConflict(c, view(4, "a"), view(5, "a"), cluster.View{})
	s.wantRead(c, cluster.View{})
	if c.String() == "" {
		s.Error("the object has no name for people")
	}
}

func checkFirst(s *bench) {
	a, b := s.direct(), s.direct()
	first := view(1, "a")
	s.swap(a, cluster.View{}, first)
	s.wantRead(b, first)
	s.wantConflict(b, cluster.View{}, view(1, "b"), first)
	s.wantRead(a, first)
}

func checkReplace(s *bench) {
	a, b := s.direct(), s.direct()
	first := view(1, "a")
	second := cluster.View{
		Number: 1<<62 - 1, Leader: "b",
		Members: []cluster.Peer{{ID: "one", Boot: "a", Address: "[::1]:7443"}, {ID: "zwei ü \"\\<>&\u2028", Boot: "b", Address: "host:1"}},
		Lost:    []cluster.Peer{{ID: "", Boot: "c", Address: ""}, {Boot: "d"}},
	}
	last := cluster.View{Number: 3}
	s.swap(a, cluster.View{}, first)
	s.swap(b, first, second)
	s.wantRead(a, second)
	// A coordinator goes by the view alone: that numbers grow is up to the Caddys.
	s.swap(a, second, last)
	s.wantRead(b, last)
}

func checkConflict(s *bench) {
	a, b := s.direct(), s.direct()
	first, second := view(1, "a"), view(2, "a")
	s.swap(a, cluster.View{}, first)
	s.swap(a, first, second)
	s.wantConflict(b, first, view(2, "b"), second)
	// The same number is not the same view.
	s.wantConflict(b, view(2, "b"), view(3, "b"), second)
	other := view(2, "a")
	other.Members[0].Address = "elsewhere:1"
	s.wantConflict(b, other, view(3, "b"), second)
	s.wantRead(b, second)
	s.swap(b, second, view(3, "b"))
}

// checkConcurrent lets several Caddys swap as fast as they can.
func checkConcurrent(s *bench) {
	const (
		caddys = 4
		last   = 24
	)
	var (
		mu      sync.Mutex
		winners = make(map[uint64]string)
		all     sync.WaitGroup
	)
	for k := range caddys {
		boot, c := strconv.Itoa(k), s.direct()
		all.Go(func() {
			var v cluster.View
			for v.Number < last {
				next := view(v.Number+1, boot)
				result, found, err := c.Swap(s.soon(), v, next)
				switch {
				case result == cluster.Swapped:
					mu.Lock()
					if w, ok := winners[next.Number]; ok {
						s.Errorf("%s and %s have both swapped to %d", w, boot, next.Number)
					}
					winners[next.Number] = boot
					mu.Unlock()
					v = next
				case result == cluster.Conflict && found.Number > v.Number:
					v = found
				default:
					s.Errorf("Swap to %d: %s, found %v, error %v", next.Number, word(result), found, err)
					return
				}
			}
		})
	}
	all.Wait()
	if len(winners) != last {
		s.Errorf("%d numbers were won, want %d", len(winners), last)
	}
	if v := s.read(s.direct()); v.Number != last || v.Leader != winners[last] {
		s.Errorf("at the end there is %v, and %s has won", v, winners[last])
	}
}

func checkUndecodable(s *bench) {
	good, err := coordinator.Encode(Name, view(7, "a"))
	if err != nil {
		s.Fatal(err)
	}
	foreign, err := coordinator.Encode("another", view(7, "a"))
	if err != nil {
		s.Fatal(err)
	}
	c, raw := s.direct(), s.open("")
	for _, data := range []string{
		"nonsense", "{}", "null",
		strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		strings.Replace(string(good), `"number":7`, `"number":0`, 1),
		strings.Replace(string(good), `"leader":"a"`, `"leader":"b"`, 1),
		string(foreign),
	} {
		s.Write(s.T, []byte(data))
		s.wantReadError(s.soon(), c)
		s.wantResult(s.soon(), c, cluster.View{}, view(1, "a"), cluster.Failed)
		if value, _, err := raw.Get(s.soon()); err != nil || string(value) != data {
			s.Errorf("the object is %q, error %v, and was %q", value, err, data)
		}
	}
	s.Write(s.T, good)
	s.wantRead(c, view(7, "a"))
	s.swap(c, view(7, "a"), view(8, "a"))
}

func checkDeleted(s *bench) {
	c := s.direct()
	first := view(1, "a")
	s.swap(c, cluster.View{}, first)
	s.Delete(s.T)
	s.wantRead(c, cluster.View{})
	s.wantConflict(c, first, view(2, "a"), cluster.View{})
	s.swap(c, cluster.View{}, view(9, "a"))
	s.wantRead(c, view(9, "a"))
}

// checkRevision holds the store to its own contract.
func checkRevision(s *bench) {
	a, b := s.open(""), s.open("")
	put := func(store coordinator.Store, value, revision string, want cluster.SwapResult) {
		s.Helper()
		if got, err := store.Put(s.soon(), []byte(value), revision); got != want || err != nil {
			s.Errorf("Put of %q: %s, error %v; want %s", value, word(got), err, word(want))
		}
	}
	get := func(want string) string {
		s.Helper()
		value, revision, err := b.Get(s.soon())
		if err != nil || string(value) != want || revision == "" {
			s.Fatalf("Get returned %q, revision %q, error %v; want %q", value, revision, err, want)
		}
		return revision
	}
	if _, revision, err := a.Get(s.soon()); err != nil || revision != "" {
		s.Fatalf("Get returned the revision %q, error %v; want none", revision, err)
	}
	put(a, "1", "", cluster.Swapped)
	put(b, "2", "", cluster.Conflict)
	one := get("1")
	put(a, "2", one, cluster.Swapped)
	put(b, "3", one, cluster.Conflict)
	two := get("2")
	s.Delete(s.T)
	put(b, "3", two, cluster.Conflict)
	put(b, "2", "", cluster.Swapped)
	put(b, "3", two, cluster.Conflict)
	put(b, "3", get("2"), cluster.Swapped)
	get("3")
}

func checkCancelled(s *bench) {
	c := s.direct()
	first := view(1, "a")
	s.swap(c, cluster.View{}, first)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.wantReadError(ctx, c)
	s.wantResult(ctx, c, first, view(2, "a"), cluster.Failed)
	store := s.open("")
	_, revision, err := store.Get(s.soon())
	if err != nil {
		s.Fatal(err)
	}
	if result, err := store.Put(ctx, []byte("x"), revision); result != cluster.Failed || err == nil {
		s.Errorf("Put with a context that has ended: %s, error %v; want failed and an error", word(result), err)
	}
	s.wantRead(c, first)
}

func checkClosed(s *bench) {
	c, other := coordinator.Over(Name, s.Open(s.T, "")), s.direct()
	first := view(1, "a")
	s.swap(c, cluster.View{}, first)
	for range 2 {
		if err := c.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	}
	s.wantReadError(s.soon(), c)
	s.wantResult(s.soon(), c, first, view(2, "a"), cluster.Failed)
	s.wantRead(other, first)
}

func checkCloseInCall(s *bench) {
	p := startProxy(s.T, s.Server)
	c := coordinator.Over(Name, s.Open(s.T, p.address))
	s.wantRead(c, cluster.View{})
	p.deafen()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(s.soon())
		ended <- err
	}()
	// Whether the call has begun or not, it must fail.
	s.inTime("Close", func() {
		if err := c.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
	})
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("Read ended with the error %v", err)
		}
	case <-time.After(s.Patience):
		s.Fatal("Read does not end after Close")
	}
}

func checkSilentRead(s *bench) {
	p := startProxy(s.T, s.Server)
	c := coordinator.Over(Name, s.open(p.address))
	s.wantRead(c, cluster.View{})
	p.deafen()
	s.wantReadError(s.briefly(), c)
}

func checkSilentSwap(s *bench) {
	p := startProxy(s.T, s.Server)
	c, other := s.swapThrough(p, p.deafen), s.direct()
	s.wantResult(s.briefly(), c, cluster.View{}, view(1, "a"), cluster.Unknown)
	// In truth it came to be.
	s.awaitRead(other, func(v cluster.View) bool { return v.Equal(view(1, "a")) })
}

func checkBroken(s *bench) {
	p := startProxy(s.T, s.Server)
	c, other := s.swapThrough(p, p.deafen), s.direct()
	var v cluster.View
	for n := range uint64(2) { // one that makes the object, and one that replaces it
		next := view(n+1, "a")
		p.mu.Lock()
		p.deaf = false
		p.mu.Unlock()
		ctx, done := s.soon(), make(chan struct{})
		go func() {
			defer close(done)
			s.wantResult(ctx, c, v, next, cluster.Unknown)
		}()
		s.awaitRead(other, next.Equal)
		p.cut()
		<-done
		if ctx.Err() != nil {
			s.Error("Swap has waited for its context, although the connection was broken")
		}
		v = next
	}
}

func checkStalled(s *bench) {
	p := startProxy(s.T, s.Server)
	c := coordinator.Over(Name, s.open(p.address))
	s.wantRead(c, cluster.View{})
	p.stall()
	s.wantReadError(s.briefly(), c)
	s.awaitRead(c, func(cluster.View) bool { return true })
}

// checkStorm breaks connections at any byte of a swap.
func checkStorm(s *bench) {
	const rounds = 60
	seed := rand.Uint64()
	s.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	p := startProxy(s.T, s.Server)
	c, other := coordinator.Over(Name, s.Open(s.T, p.address)), s.direct()
	never := make(map[string]bool)
	results := make(map[string]int)
	v := view(1, "first")
	s.swap(c, cluster.View{}, v)
	usual := p.traffic() // with what it takes to connect
	for k := range rounds {
		if k%2 == 0 {
			// From the first byte of a connection on.
			_ = c.Close()
			c = coordinator.Over(Name, s.Open(s.T, p.address))
		} else {
			// An unknown swap may have been done by now.
			v = s.awaitRead(c, func(cluster.View) bool { return true })
		}
		next := view(v.Number+1, "boot "+strconv.Itoa(k))
		p.cutAfter(1 + random.IntN(usual*2))
		var result cluster.SwapResult
		s.inTime("Swap", func() {
			var err error
			result, _, err = c.Swap(s.briefly(), v, next)
			if (err == nil) != (result == cluster.Swapped || result == cluster.Conflict) {
				s.Errorf("Swap: %s, error %v", word(result), err)
			}
		})
		p.cutAfter(-1)
		results[word(result)]++
		v = s.read(other)
		switch {
		case result == cluster.Swapped && !v.Equal(next):
			s.Errorf("the swap to %v was said to be done, and there is %v", next, v)
		case result == cluster.Failed || result == cluster.Conflict:
			never[next.Leader] = true
		}
		if never[v.Leader] {
			s.Errorf("there is %v, whose swap was said not to have been done (last result: %s)", v, word(result))
		}
	}
	_ = c.Close()
	s.Logf("%v", results)
	if n := results["swapped"]; n == 0 || n > rounds*9/10 {
		s.Errorf("the results are %v: the storm was too heavy or too light to show anything", results)
	}
}

func checkStopped(s *bench) {
	first := view(1, "a")
	c := s.direct()
	s.swap(c, cluster.View{}, first)
	var start func()
	cut := coordinator.Over(Name, gate{s.open(""), func() { start = s.again(s.Stop(s.T)) }})
	s.wantResult(s.briefly(), cut, first, view(2, "b"), cluster.Failed, cluster.Unknown)
	if start == nil {
		s.Fatal("Swap did not come to its write")
	}
	s.wantReadError(s.briefly(), c)
	s.wantResult(s.briefly(), c, first, view(2, "a"), cluster.Failed)
	start()
	s.awaitRead(c, first.Equal)
	s.awaitRead(cut, first.Equal)
	s.swap(c, first, view(2, "a"))
}

func checkFrozen(s *bench) {
	first, second := view(1, "a"), view(2, "b")
	c := s.direct()
	s.swap(c, cluster.View{}, first)
	var thaw func()
	cut := coordinator.Over(Name, gate{s.open(""), func() { thaw = s.again(s.Freeze(s.T)) }})
	s.wantResult(s.briefly(), cut, first, second, cluster.Unknown)
	if thaw == nil {
		s.Fatal("Swap did not come to its write")
	}
	s.wantReadError(s.briefly(), c)
	s.wantResult(s.briefly(), c, first, view(2, "a"), cluster.Failed)
	thaw()
	// What was sent may be done now, or not.
	v := s.awaitRead(c, func(cluster.View) bool { return true })
	if !v.Equal(first) && !v.Equal(second) {
		s.Errorf("there is %v", v)
	}
	for {
		result, found, err := c.Swap(s.soon(), v, view(3, "a"))
		if result == cluster.Swapped {
			break
		}
		if result != cluster.Conflict || !found.Equal(second) || v.Equal(second) {
			s.Fatalf("Swap: %s, found %v, error %v", word(result), found, err)
		}
		v = found // what was sent has just been done
	}
	s.wantRead(c, view(3, "a"))
}
