package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
)

// members is how many Caddys share the instances.
const members = 3

// lease is the default: what a leader's end costs depends on it.
const lease = 5 * time.Second

// together measures Caddys that share instances.
func (b *bench) together() error {
	if b.binaries.etcd == "" {
		b.say("etcd is not installed: Caddys that share instances are left out")
		return nil
	}
	for _, part := range []struct {
		what string
		run  func(*bench) error
	}{
		{"a member against no cluster", (*bench).alone},
		{"slots that move", (*bench).handOver},
		{"members that are killed", (*bench).lose},
		{"the use of slots", (*bench).use},
	} {
		if err := part.run(b); err != nil {
			return fmt.Errorf("%s: %w", part.what, err)
		}
		b.clear()
	}
	return nil
}

// shared is a site with Usher before the instances of the origin, which Caddys
// share. All of its instances are ready.
func shared(o *origin, options ...string) string {
	return fmt.Sprintf("usher web {\nbackend existing %s %d shared\ninstances %d %d\nmax_waiting 10000\nwait_timeout 2m\n%s\n}",
		host, o.port, o.n, o.n, strings.Join(options, "\n"))
}

// startEtcd starts an etcd that keeps nothing beyond the part.
func (b *bench) startEtcd() (url string, err error) {
	port, err := b.freePorts(2)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(b.dir, "etcd-*")
	if err != nil {
		return "", err
	}
	url, peer := "http://"+at(port), "http://"+at(port+1)
	_, err = b.start("etcd", b.binaries.etcd, "--data-dir", dir, "--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return "", err
	}
	return url, await(30*time.Second, "etcd answers", func() bool {
		resp, err := http.Get(url + "/health") //nolint:noctx // it is here, and answers or refuses
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// cluster starts n Caddys with one site that share its instances. The first one
// leads.
func (b *bench) cluster(n int, site string) (all []*server, err error) {
	etcd, err := b.startEtcd()
	if err != nil {
		return nil, err
	}
	for k := range n {
		port, err := b.freePorts(1)
		if err != nil {
			return nil, err
		}
		s, err := b.caddy(site, fmt.Sprintf("usher {\nmax_waiting 10000\ncluster {\ncoordinator etcd %s\nlisten %s\nsecret \"what all of them know\"\n}\n}", etcd, at(port)))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
		if err := s.awaitCluster("it is a member", func(c clusterStatus) bool { return !c.Isolated && len(c.Members) == k+1 }); err != nil {
			return nil, err
		}
	}
	for _, s := range all {
		if err := s.awaitService("web", "all instances are ready", func(st status) bool { return st.Instances.Ready > 0 }); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// clusterStatus is what a Caddy says of its cluster.
type clusterStatus struct {
	Isolated bool `json:"isolated"`
	Members  []struct {
		Leader bool `json:"leader"`
	} `json:"members"`
	Services []struct {
		Held  int `json:"held"`
		InUse int `json:"in_use"`
	} `json:"services"`
}

func (s *server) awaitCluster(what string, cond func(clusterStatus) bool) error {
	var last clusterStatus
	err := await(60*time.Second, what, func() bool {
		text, err := s.askAdmin(http.MethodGet, "/usher/cluster", "", nil)
		if err != nil || json.Unmarshal(text, &last) != nil {
			return false
		}
		return cond(last)
	})
	if err != nil {
		return fmt.Errorf("the cluster: %w (%+v)\n%s", err, last, s.output())
	}
	return nil
}

// alone compares a member that holds all slots with a Caddy that shares nothing.
func (b *bench) alone() error {
	o, err := b.origin(1)
	if err != nil {
		return err
	}
	member, single, again := &side{name: "member"}, &side{name: "no cluster"}, &side{name: "no cluster, again"}
	all, err := b.cluster(2, shared(o, "concurrency 256"))
	if err != nil {
		return err
	}
	member.server = all[0]
	for _, s := range []*side{single, again} {
		if s.server, err = b.caddy(ushered(o, "concurrency 256"), ""); err != nil {
			return err
		}
		if err := s.awaitService("web", "the instance is ready", func(st status) bool { return st.Instances.Ready == 1 }); err != nil {
			return err
		}
	}
	sides := []*side{member, single, again}
	for i := range b.rounds(9, 3) + 1 {
		for k := range sides {
			if err := b.saturate(sides[(i+k)%len(sides)], i > 0); err != nil {
				return err
			}
		}
	}
	twice := again.throughput.over(single.throughput)
	b.idleNoise = max(b.idleNoise, abs(twice.median()-1)+twice.noise())
	b.compare("throughput of a member that holds the slots", perSecond, member.throughput, single.throughput, "no cluster", atLeast("P11", 0.99, "≥ 0.99 of no cluster"))
	b.idleNoise = 0
	b.figure("allocations per request, more than without a cluster", tenths, member.allocs.minus(single.allocs), "", atMost("P11", 0.5, "0 more"))
	return nil
}

// handOver measures how long it takes until a slot that becomes free at one member
// is used at another one: from the end of the answer there to the first byte here.
func (b *bench) handOver() error {
	o, err := b.origin(1)
	if err != nil {
		return err
	}
	all, err := b.cluster(2, shared(o, "concurrency 1"))
	if err != nil {
		return err
	}
	var direct, moved series
	turn := func(from, to *server) (float64, error) {
		inside, err := load.Dial(from.address, "/slow/20ms")
		if err != nil {
			return 0, err
		}
		defer inside.Close()
		waits, err := load.Dial(to.address, "/")
		if err != nil {
			return 0, err
		}
		defer waits.Close()
		if err := inside.Send(); err != nil {
			return 0, err
		}
		time.Sleep(8 * time.Millisecond) // it is inside by then, and its slot at that member
		if err := waits.Send(); err != nil {
			return 0, err
		}
		answered := make(chan time.Time, 1)
		failed := make(chan error, 1)
		go func() {
			err := waits.Receive(30 * time.Second)
			answered <- time.Now()
			failed <- err
		}()
		if err := inside.Receive(30 * time.Second); err != nil {
			return 0, err
		}
		freed := time.Now()
		return float64((<-answered).Sub(freed)), <-failed
	}
	for i := range b.rounds(400, 150) {
		d, err := turn(all[i%2], all[i%2])
		if err != nil {
			return err
		}
		direct = append(direct, d)
		if d, err = turn(all[i%2], all[1-i%2]); err != nil {
			return err
		}
		moved = append(moved, d)
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	b.quantile("a slot that becomes free at another member, to the first byte, p50", moved, direct, 0.5, atMost("P12", 1e6, "≤ 1 ms"))
	b.quantile("the same, p99", moved, direct, 0.99, atMost("P12", 5e6, "≤ 5 ms"))
	return nil
}

// quantile adds a row for a quantile of single measurements, beside that of others.
func (b *bench) quantile(what string, ours, theirs series, q float64, limit *budget) {
	r := row{part: b.part, what: what, usher: milli(ours.quantile(q)), other: milli(theirs.quantile(q)) + " within one Caddy", budget: limit.name + ": " + limit.words}
	r.verdict = limit.judge(ours.quantile(q), b.idleNoise)
	b.add(r)
}

// lose measures how long it takes until the slots of a member that was killed
// are used by another one, and until a service wakes again.
func (b *bench) lose() error {
	var member, leader, wakes series
	for range b.rounds(5, 2) {
		for _, leads := range []bool{false, true} {
			took, woke, err := b.kill(leads)
			if err != nil {
				return err
			}
			if leads {
				leader, wakes = append(leader, took), append(wakes, woke)
			} else {
				member = append(member, took)
			}
			b.clear()
		}
	}
	b.figure("a member is killed: another one uses its slot after", milli, member, "", atMost("P13", 1e9, "≤ 1 s"))
	most := float64(2*time.Second + lease)
	b.figure("the leader is killed: another member uses its slot after", milli, leader, "", atMost("P13", most, "≤ 2 s + lease"))
	b.figure("the leader is killed: a service that sleeps is awake after", milli, wakes, "", atMost("P13", most, "≤ 2 s + lease"))
	return nil
}

// kill kills a member with a request inside the only instance, while a request
// waits at another one, and one for a service that sleeps.
func (b *bench) kill(leads bool) (used, woke float64, err error) {
	o, err := b.origin(2)
	if err != nil {
		return 0, 0, err
	}
	site := fmt.Sprintf("usher web {\nbackend existing %s %d shared\ninstances 1 1\nconcurrency 1\nwait_timeout 2m\n}\n", host, o.port) // the first port
	site = fmt.Sprintf("handle /sleeping {\nusher asleep {\nbackend existing %s %d shared\ninstances 0 1\nwait_timeout 2m\n}\n}\nhandle {\n%s}", host, o.port+1, site)
	all, err := b.cluster(members, site)
	if err != nil {
		return 0, 0, err
	}
	victim, other := all[0], all[1]
	if !leads {
		victim = all[2]
	}
	inside, err := load.Hold(1, victim.address, "/never")
	if err != nil {
		return 0, 0, err
	}
	defer inside.Leave()
	if err := other.awaitCluster("the request is inside", func(c clusterStatus) bool {
		n := 0
		for _, s := range c.Services {
			n += s.InUse
		}
		return n == 1
	}); err != nil {
		return 0, 0, err
	}
	waits, err := load.Hold(1, other.address, "/")
	if err != nil {
		return 0, 0, err
	}
	defer waits.Leave()
	if err := other.awaitService("web", "a request waits", func(st status) bool { return st.Waiting == 1 }); err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	victim.kill()
	wakes, err := load.Hold(1, other.address, "/sleeping")
	if err != nil {
		return 0, 0, err
	}
	defer wakes.Leave()
	last, err := waits.Answers(time.Minute)
	if err != nil {
		return 0, 0, err
	}
	awake, err := wakes.Answers(time.Minute)
	return float64(last.Sub(begun)), float64(awake.Sub(begun)), err
}

// anywhere is a client that sends each request to any of the members.
type anywhere struct{ conns []*load.Conn }

func dialAll(all []*server, path string) func() (load.Asker, error) {
	return func() (load.Asker, error) {
		a := new(anywhere)
		for _, s := range all {
			c, err := load.Dial(s.address, path)
			if err != nil {
				a.Close()
				return nil, err
			}
			a.conns = append(a.conns, c)
		}
		return a, nil
	}
}

func (a *anywhere) Ask() error { return a.conns[rand.IntN(len(a.conns))].Ask() }

func (a *anywhere) Close() {
	for _, c := range a.conns {
		c.Close()
	}
}

// use compares how well members together use the slots with how well one Caddy
// alone does: with more slots than members, and, as the price of the worst case,
// with one.
func (b *bench) use() error {
	path := "/slow/" + serviceTime.String()
	for _, c := range []struct {
		what               string
		instances, clients int
		limit              *budget
	}{
		{"200 clients at 3 members, 10 instances of 1 slot: requests answered", 10, 200, atLeast("P14", 0.9, "≥ 0.9 of one Caddy")},
		{"30 clients at 3 members, 1 instance of 1 slot: requests answered", 1, 30, nil},
	} {
		var together, alone series
		for range b.rounds(5, 2) {
			o, err := b.origin(c.instances)
			if err != nil {
				return err
			}
			all, err := b.cluster(members, shared(o, "concurrency 1"))
			if err != nil {
				return err
			}
			run := func(all []*server) (float64, error) {
				r, err := load.Closed(b.span(6*time.Second, 2*time.Second), c.clients, dialAll(all, path))
				return r.Rate(), err
			}
			rate, err := run(all)
			if err != nil {
				return err
			}
			together = append(together, rate)
			b.clear()

			if o, err = b.origin(c.instances); err != nil {
				return err
			}
			one, err := b.caddy(ushered(o, "concurrency 1", "max_waiting 10000", "wait_timeout 2m"), "usher {\nmax_waiting 10000\n}")
			if err != nil {
				return err
			}
			if err := one.awaitService("web", "all instances are ready", func(st status) bool { return st.Instances.Ready == c.instances }); err != nil {
				return err
			}
			if rate, err = run([]*server{one}); err != nil {
				return err
			}
			alone = append(alone, rate)
			b.clear()
			if b.ctx.Err() != nil {
				return errors.New("interrupted")
			}
		}
		b.compare(c.what, perSecond, together, alone, "one Caddy", c.limit)
	}
	return nil
}
