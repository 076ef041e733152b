package process

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// loopback is where instances listen.
const loopback = "127.0.0.1"

// portRest is how long a port is left alone after an instance had it, so that
// nothing that still knows it reaches the next one.
const portRest = 3 * time.Minute

// portPool hands out the ports of this machine to the instances of all
// services, round robin.
type portPool struct {
	mu      sync.Mutex
	last    int
	used    map[int]bool
	resting map[int]time.Time // when the rest began
	now     func() time.Time
}

// ports is the pool of this Caddy.
var ports = newPortPool(time.Now)

func newPortPool(now func() time.Time) *portPool {
	return &portPool{used: make(map[int]bool), resting: make(map[int]time.Time), now: now}
}

// take returns the next port that is free, and what try made of it: try binds
// the port and fails if somebody else has it.
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
	now := p.now()
	var used, resting int
	var refused error
	for range to - from + 1 {
		p.last++
		if p.last > to {
			p.last = from
		}
		port := p.last
		if p.used[port] {
			used++
			continue
		}
		if began, ok := p.resting[port]; ok {
			if now.Sub(began) < portRest {
				resting++
				continue
			}
			delete(p.resting, port)
		}
		if err := try(port); err != nil {
			// That says nothing about this port, nor would the next one.
			if f := quotaFailure(err); f != nil {
				return 0, f
			}
			refused = err
			continue
		}
		p.used[port] = true
		return port, nil
	}
	total := to - from + 1
	return 0, &scaler.Failure{
		Reason: scaler.ReasonQuota, Short: "no free port",
		Detail: fmt.Sprintf("of the %d ports %d-%d, %d are used by instances, %d rest for %s after an instance had them, and %d are held by other programs; widen ports in the global options",
			total, from, to, used, resting, portRest, total-used-resting),
		Err: refused,
	}
}

// reserve takes a port out of the pool that an instance has already.
func (p *portPool) reserve(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[port] = true
}

// give takes a port back. One that an instance had rests.
func (p *portPool) give(port int, hadInstance bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, port)
	if hadInstance {
		p.resting[port] = p.now()
	}
}

// checkFree finds out by binding whether a port is free.
func checkFree(port int) error {
	ln, err := net.Listen("tcp4", net.JoinHostPort(loopback, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return ln.Close()
}
