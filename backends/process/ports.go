package process

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sort"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// loopback is where instances listen, unless the address of the program is
// fixed.
const loopback = "127.0.0.1"

// loopback6 is where a program with a fixed address can listen, too.
const loopback6 = "::1"

// onLoopback is the address of an instance that has a port of the pool.
func onLoopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}

// portRest is how long a port is left alone after an instance had it, so that
// nothing that still knows it reaches the next one. If all free ports rest, the
// one that has rested longest is taken all the same: a short rest is better
// than a request without an instance.
const portRest = 3 * time.Minute

// portPool hands out the ports of this machine to the instances of all
// services, round robin.
type portPool struct {
	mu      sync.Mutex
	last    int
	used    map[netip.AddrPort]bool
	fixed   map[int]int       // ports that programs insist on, and how often
	resting map[int]time.Time // when the rest began
	now     func() time.Time
}

// ports is the pool of this Caddy.
var ports = newPortPool(time.Now)

func newPortPool(now func() time.Time) *portPool {
	return &portPool{used: make(map[netip.AddrPort]bool), fixed: make(map[int]int), resting: make(map[int]time.Time), now: now}
}

// take returns a free port: the next one that does not rest, else the one that
// has rested longest. try binds the port, and fails if another program has it.
func (p *portPool) take(from, to int, try func(port int) error) (int, *scaler.Failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if from < 1 || to > 65535 || from > to {
		return 0, &scaler.Failure{
			Reason: scaler.ReasonQuota, Short: "no ports for instances",
			Detail: fmt.Sprintf("the range of ports %d-%d is empty; set ports <from>-<to> in the global options", from, to),
		}
	}
	if p.last < from || p.last > to {
		// Two Caddys on one machine should not walk in step.
		p.last = from + rand.IntN(to-from+1)
	}
	var refused error
	attempt := func(port int) (taken bool, limit *scaler.Failure) {
		if err := try(port); err != nil {
			refused = err
			// A limit of the system says nothing about this port: the next one
			// would fail as well.
			return false, quotaFailure(err)
		}
		p.used[onLoopback(port)] = true
		delete(p.resting, port)
		return true, nil
	}
	now := p.now()
	used := 0
	var resting []int
	for range to - from + 1 {
		p.last++
		if p.last > to {
			p.last = from
		}
		port := p.last
		if p.used[onLoopback(port)] || p.fixed[port] > 0 {
			used++
			continue
		}
		if began, ok := p.resting[port]; ok && now.Sub(began) < portRest {
			resting = append(resting, port)
			continue
		}
		if taken, f := attempt(port); taken || f != nil {
			return port, f
		}
	}
	sort.Slice(resting, func(i, k int) bool { return p.resting[resting[i]].Before(p.resting[resting[k]]) })
	for _, port := range resting {
		if taken, f := attempt(port); taken || f != nil {
			return port, f
		}
	}
	total := to - from + 1
	return 0, &scaler.Failure{
		Reason: scaler.ReasonQuota, Short: "no free port",
		Detail: fmt.Sprintf("of the %d ports %d-%d, %d are used by instances and %d are held by other programs; widen ports in the global options",
			total, from, to, used, total-used),
		Err: refused,
	}
}

// reserve takes an address out of the pool that an instance has already.
func (p *portPool) reserve(at netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[at] = true
}

// claim takes one address for an instance, if no other instance has it. It does
// not ask whether another program has it.
func (p *portPool) claim(at netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[at] {
		return false
	}
	p.used[at] = true
	if at.Addr().Is4() {
		delete(p.resting, int(at.Port()))
	}
	return true
}

// keepFree keeps a port from instances that can have any other one, until the
// function that is returned is called: a program listens on it and no other,
// perhaps not now.
func (p *portPool) keepFree(port int) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fixed[port]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.fixed[port]--; p.fixed[port] == 0 {
			delete(p.fixed, port)
		}
	}
}

// give takes an address back. With rest its port rests: an instance has had it.
func (p *portPool) give(at netip.AddrPort, rest bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, at)
	if rest {
		p.resting[int(at.Port())] = p.now()
	}
}

// checkFree finds out by binding whether a port is free.
func checkFree(port int) error {
	ln, err := net.Listen("tcp4", onLoopback(port).String())
	if err != nil {
		return err
	}
	return ln.Close()
}
