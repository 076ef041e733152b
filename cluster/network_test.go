package cluster

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var (
	simSeeds = flag.Int("sim.seeds", 6, "how many seeds to simulate")
	simFirst = flag.Uint64("sim.first", 1, "the first seed")
)

// calmWithin is how long a slot may be free, although a request waits for it,
// when nothing goes wrong: a few round trips of at most 1.1 ms and
// the time between two reports.
const calmWithin = 100 * time.Millisecond

// TestALongBadDay has everything go wrong for a while, again and again:
// streams break and deliver late, Caddys crash, stand still, join and leave, the
// network is cut one way or both ways, wall clocks jump, the coordinator is
// away and its answers are lost. No instance ever has more requests inside
// than slots. When all is calm again, free slots reach those who wait.
func TestALongBadDay(t *testing.T) {
	for k := range *simSeeds {
		seed := *simFirst + uint64(k)
		for name, o := range map[string]Options{
			"timed":   {Lease: 2 * time.Second, LostAfter: 4 * time.Second},
			"replace": {Lease: 2 * time.Second, LostAfter: 4 * time.Second, Replace: true},
		} {
			t.Run(fmt.Sprintf("%s, seed %d", name, seed), func(t *testing.T) { badDay(t, seed, o) })
		}
	}
}

// rage has two services served while everything goes wrong.
func (s *sim) rage() {
	services := []string{"one", "two"}
	for range 3 {
		s.join()
	}
	for _, name := range services {
		for k := range 4 {
			s.start(name, fmt.Sprintf("%s-%d", name, k), 1+k%2, true)
		}
		for range 12 {
			s.in(s.rnd.Int64N(1000*ms), func() { s.client(name) })
		}
	}
	s.run(time.Second)
	s.mishaps = true
	for k := range 60 {
		s.mishap()
		if k%3 == 0 {
			s.scale(services[s.rnd.IntN(2)], k)
		}
		name := services[k/4%2]
		if ids := slices.Sorted(maps.Keys(s.services[name])); k%4 == 1 && len(ids) > 0 {
			s.replace(name, ids[s.rnd.IntN(len(ids))], fmt.Sprintf("%s-again-%d", name, k), false)
		}
		s.run(time.Duration(s.rnd.Int64N(int64(2 * time.Second))))
	}
}

// TestABadDayShowsWhichRuleIsBroken shows that the simulation would see it.
func TestABadDayShowsWhichRuleIsBroken(t *testing.T) {
	for name, f := range map[string]faults{
		"requests start without a lease":                            {noLease: true},
		"a new leader does not wait":                                {noWait: true},
		"messages of old sessions count":                            {anySession: true},
		"lost Caddys do not stand in the view":                      {forgetLost: true},
		"slots are returned before the reserver has let go of them": {returnEarly: true},
		"an address is used anew at once":                           {noVacancy: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 10; seed++ {
				s := newSim(seed, Options{Lease: 2 * time.Second, LostAfter: 4 * time.Second})
				s.faults = f
				if s.rage(); s.breach != "" {
					t.Log(s.breach)
					return
				}
			}
			t.Error("nothing was seen")
		})
	}
}

// badDay is the day that goes wrong, and the calm after it.
func badDay(t *testing.T, seed uint64, o Options) {
	s := newSim(seed, o)
	s.rage()
	if s.breach != "" {
		t.Fatal(s.breach)
	}
	services := []string{"one", "two"}
	s.mishaps, s.away = false, false
	clear(s.oneWay)
	for _, c := range s.nodes { // an operator, or the platform, says which have ended
		for _, o := range s.nodes {
			if !o.alive {
				s.step(c, Dead{Boot: s.name(o.k)})
			}
		}
	}
	s.run(4 * (o.Lease + o.LostAfter))
	if o.Replace { // what replaces the instances that were lost
		for _, name := range services {
			s.start(name, name+"-new", 2, true)
		}
		s.listAll()
		s.run(time.Second)
	}
	before := s.served
	for _, name := range services {
		if idle := s.watchIdle(name, 3*time.Second); idle > int64(calmWithin) {
			t.Errorf("a slot of %s was free for %v beside requests that wait; view %+v", name, time.Duration(idle), s.store)
		}
	}
	if s.breach != "" {
		t.Fatal(s.breach)
	}
	if s.served-before < 100 {
		t.Errorf("%d requests in 6 s of calm; view %+v", s.served-before, s.store)
	}
	t.Logf("%d requests, view %d, %d Caddys were there", s.served, s.store.Number, len(s.nodes))
}

// calmCluster makes a cluster in which nothing goes wrong.
func calmCluster(members, instances, clients int) *sim {
	return calmClusterWith(Options{}, members, instances, clients)
}

func calmClusterWith(o Options, members, instances, clients int) *sim {
	s := newSim(1, o)
	s.rtt = func(*rand.Rand) int64 { return 200_000 } // 0.2 ms
	for range members {
		s.join()
		s.run(2 * time.Second)
	}
	for k := range instances {
		s.start("web", fmt.Sprintf("web-%d", k), 1, true)
	}
	s.listAll()
	s.run(time.Second)
	for range clients {
		s.in(0, func() { s.client("web") })
	}
	return s
}

func TestTheUseOfSlotsIsNearToThatOfOneCaddyAlone(t *testing.T) {
	measure := func(members int) (served, recalls int) {
		s := calmCluster(members, 10, 200)
		s.worktime = func(r *rand.Rand) int64 { return 5*ms + r.Int64N(10*ms) }
		s.run(2 * time.Second)
		served, recalls = s.served, s.recalls
		s.run(20 * time.Second)
		return s.served - served, s.recalls - recalls
	}
	alone, _ := measure(1)
	together, recalls := measure(3)
	t.Logf("alone %d requests, together %d: %.3f; %d recalls", alone, together, float64(together)/float64(alone), recalls)
	if float64(together) < 0.95*float64(alone) {
		t.Errorf("three Caddys served %d requests, one alone %d", together, alone)
	}
	if recalls > together/4 {
		t.Errorf("%d recalls for %d requests", recalls, together)
	}
}

// Few clients on random Caddys are the worst case: nearly every request comes
// to a Caddy that does not hold the slot.
func TestAFreedSlotReachesAWaiterElsewhereInTwoRoundTrips(t *testing.T) {
	s := calmCluster(3, 1, 2)
	s.worktime = func(*rand.Rand) int64 { return 10 * ms }
	s.run(2 * time.Second)
	served, recalls := s.served, s.recalls
	s.run(20 * time.Second)
	served, recalls = s.served-served, s.recalls-recalls
	// With one slot, what is not work is the time of a hand-over.
	handover := (20*time.Second - time.Duration(served)*10*time.Millisecond) / time.Duration(served)
	t.Logf("%d requests, %v between two of them, %d recalls", served, handover, recalls)
	if handover > time.Millisecond {
		t.Errorf("%v between two requests", handover)
	}
	if recalls > 2*served { // one to each other Caddy
		t.Errorf("%d recalls for %d requests", recalls, served)
	}
}

func TestAKilledMembersSlotsAreUsedWithinASecond(t *testing.T) {
	for name, leader := range map[string]bool{"the leader": true, "another": false} {
		t.Run(name, func(t *testing.T) {
			s := calmCluster(3, 10, 60)
			s.run(time.Second)
			k := slices.IndexFunc(s.nodes, func(c *caddy) bool { return c.leads == leader })
			c := s.nodes[k]
			s.rnd = rand.New(rand.NewPCG(1, 0)) // the first crash of this seed is proven
			s.crash(c)
			if idle := s.watchIdle("web", 10*time.Second); idle > int64(time.Second) {
				t.Errorf("a slot was free for %v", time.Duration(idle))
			} else {
				t.Logf("free for %v at most", time.Duration(idle))
			}
		})
	}
}
