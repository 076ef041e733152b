package cluster

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func held(c *caddy, instance string) int {
	for _, h := range c.node.Held("web") {
		if h.Instance == instance {
			return h.N
		}
	}
	return 0
}

func TestARequestBoundToAnInstanceGetsASlotOfThatInstance(t *testing.T) {
	s := calmCluster(3, 2, 0)
	k := slices.IndexFunc(s.nodes, func(c *caddy) bool { return held(c, "web-0") == 0 })
	c := s.nodes[k]
	s.step(c, Demand{Need: Need{Service: "web", Bound: []BoundNeed{{Instance: "web-0", Waiting: 1}}}})
	s.run(10 * time.Millisecond)
	if held(c, "web-0") != 1 {
		t.Errorf("it holds %v", c.node.Held("web"))
	}
}

func TestEveryMemberMayUseAnInstanceWithoutALimit(t *testing.T) {
	s := calmCluster(3, 0, 0)
	s.start("web", "web-0", Unlimited, true)
	s.listAll()
	s.run(100 * time.Millisecond)
	for _, c := range s.nodes {
		if r := c.part("web").room("web-0"); r.slots != Unlimited {
			t.Errorf("%d has %d slots", c.k, r.slots)
		}
	}
	for range 20 {
		s.client("web")
	}
	empty := int64(0)
	s.seen = func(_ *caddy, o Output) {
		if _, ok := o.(Empty); ok {
			empty = s.now
		}
	}
	s.services["web"]["web-0"].State = Withdrawn
	s.listAll()
	s.run(time.Second)
	if s.breach != "" || empty == 0 {
		t.Errorf("empty at %d; %s", empty, s.breach)
	}
}

func TestAMemberWithAnotherDefinitionIsTold(t *testing.T) {
	s := calmCluster(2, 1, 0)
	told := make(map[string]bool)
	s.seen = func(c *caddy, o Output) {
		if d, ok := o.(Differs); ok {
			told[s.name(c.k)+" of "+d.Boot] = d.On
		}
	}
	define := func(k int, hash string) {
		s.step(s.nodes[k], Defined{Definitions: []Definition{{Service: "web", Hash: hash}}})
		s.run(100 * time.Millisecond)
	}
	define(0, "x") // it leads
	define(1, "y")
	if !told["000 of 001"] || !told["001 of 001"] {
		t.Errorf("told: %v", told)
	}
	define(1, "x")
	if told["000 of 001"] || told["001 of 001"] {
		t.Errorf("still told: %v", told)
	}
}

func TestALeaderThatLeavesHandsOverAtOnce(t *testing.T) {
	s := calmCluster(3, 4, 10)
	s.run(time.Second)
	s.leave(s.nodes[0])
	left := int64(0)
	s.seen = func(c *caddy, o Output) {
		if _, ok := o.(Left); ok && c.k == 0 {
			left = s.now
		}
	}
	begun := s.now
	if idle := s.watchIdle("web", 2*time.Second); idle > int64(200*time.Millisecond) {
		t.Errorf("a slot was free for %v", time.Duration(idle))
	}
	if left == 0 || left-begun > int64(500*time.Millisecond) {
		t.Errorf("it left after %v", time.Duration(left-begun))
	}
	if s.store.Has("000") || len(s.store.Members) != 2 || len(s.store.Lost) != 0 {
		t.Errorf("the view is %+v", s.store)
	}
}

// A container starts again with the same address, or another one gets it.
func TestAnAddressIsNotUsedAnewBeforeAllCaddysKnow(t *testing.T) {
	const leader = 0
	for name, stop := range map[string]func(*sim, *caddy){
		"one stands still":        func(s *sim, c *caddy) { s.pause(c, 800*ms) },
		"one is cut off":          func(s *sim, c *caddy) { s.cutOff(c, 20_000*ms) },
		"the leader is killed":    func(s *sim, c *caddy) { s.pause(c, 3000*ms); s.crash(s.nodes[leader]) },
		"the leader hands over":   func(s *sim, c *caddy) { s.pause(c, 800*ms); s.leave(s.nodes[leader]) },
		"one is lost and is back": func(s *sim, c *caddy) { s.cutOff(c, 9000*ms) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(10) {
				s := calmCluster(3, 2, 0)
				s.run(70 * time.Second) // until there can be no Caddy that no member knows of
				s.rnd = rand.New(rand.NewPCG(seed, 1))
				for _, i := range s.services["web"] {
					i.Fresh = false // there may be another leader
				}
				s.listAll()
				for range 12 {
					s.in(0, func() { s.client("web") })
				}
				s.run(time.Second)
				k := slices.IndexFunc(s.nodes, func(c *caddy) bool { return c.k != leader && held(c, "web-0") > 0 })
				for k < 0 {
					s.run(time.Millisecond)
					k = slices.IndexFunc(s.nodes, func(c *caddy) bool { return c.k != leader && held(c, "web-0") > 0 })
				}
				stop(s, s.nodes[k])
				s.replace("web", "web-0", "web-a", false)
				s.run(2 * time.Second)
				s.replace("web", "web-1", "web-b", false)
				s.run(20 * time.Second)
				if s.breach != "" {
					t.Fatalf("seed %d: %s", seed, s.breach)
				}
				if idle := s.watchIdle("web", time.Second); idle > int64(200*time.Millisecond) {
					t.Errorf("seed %d: a slot was free for %v", seed, time.Duration(idle))
				}
			}
		})
	}
}

// With Replace, an instance whose address a lost Caddy may still reach is replaced.
// Until it is, its slots are not given to others: the lost one may have them.
func TestAnInstanceThatIsToBeReplacedGetsNoMoreRequests(t *testing.T) {
	for seed := range uint64(10) {
		s := calmClusterWith(Options{Replace: true}, 3, 2, 0)
		s.run(70 * time.Second) // until there can be no Caddy that no member knows of
		s.rnd = rand.New(rand.NewPCG(seed, 1))
		for range 4 {
			s.in(0, func() { s.client("web") })
		}
		lost := func() int {
			return slices.IndexFunc(s.nodes, func(c *caddy) bool { return c.k != 0 && held(c, "web-0") > 0 })
		}
		for lost() < 0 {
			s.run(time.Millisecond)
		}
		replaced := false
		s.seen = func(_ *caddy, o Output) {
			r, ok := o.(Replace)
			replaced = replaced || ok && r.Instance == "web-a"
		}
		s.cutOff(s.nodes[lost()], 60_000*ms)
		s.worktime = func(*rand.Rand) int64 { return 60_000 * ms }
		s.replace("web", "web-0", "web-a", false)
		s.run(20 * time.Second)
		if s.breach != "" || !replaced {
			t.Fatalf("seed %d: web-a is replaced: %t; %s", seed, replaced, s.breach)
		}
	}
}

// cutOff has nothing of a Caddy arrive at another one, nor the other way round,
// for a time.
func (s *sim) cutOff(c *caddy, d int64) {
	for _, o := range s.nodes {
		s.oneWay[[2]int{c.k, o.k}], s.oneWay[[2]int{o.k, c.k}] = true, true
	}
	s.in(d, func() { clear(s.oneWay) })
}

func TestAForgottenMemberIsWaitedForNoLonger(t *testing.T) {
	s := calmCluster(2, 8, 40)
	s.run(time.Second)
	s.nodes[1].pausedTo = never // it does not come back
	s.breakStream(0, 1)
	s.run(10 * time.Second)
	if len(s.store.Lost) != 1 {
		t.Fatalf("the view is %+v", s.store)
	}
	s.nodes[1].alive = false // it had ended long ago
	for id := range s.nodes[1].part("web").instances {
		s.cut(s.nodes[1], "web", id)
	}
	s.step(s.nodes[0], Forget{ID: "001"})
	s.run(time.Second)
	if len(s.store.Lost) != 0 {
		t.Errorf("the view is %+v", s.store)
	}
}
