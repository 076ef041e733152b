package fleet_test

import (
	"sync"
	"testing"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/test/docs/fleet"
)

// The backend of the pages keeps the contract: it is what others begin with.
func TestTheExampleKeepsTheContract(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backendtest.Subject {
		watched := &counted{Backend: &fleet.Backend{Servers: []string{"127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"}}}
		return backendtest.Subject{
			Backend: watched,
			Same:    &fleet.Backend{Servers: []string{"127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"}},
			Other:   &fleet.Backend{Servers: []string{"127.0.0.1:9004"}},
			Broken:  &fleet.Backend{},
			Running: watched.running,
		}
	})
}

// counted counts the servers that are in use, by what is reported: there is no
// platform to ask.
type counted struct {
	*fleet.Backend

	mu sync.Mutex
	n  int
}

func (c *counted) Open(env scaler.Env) (scaler.Scaler, error) {
	deliver := env.Report
	env.Report = func(r scaler.Report) {
		c.mu.Lock()
		c.n = len(r.Instances)
		c.mu.Unlock()
		deliver(r)
	}
	return c.Backend.Open(env)
}

func (c *counted) running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
