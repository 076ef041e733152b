// Package fleet is a backend whose instances are the servers of a list.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(Backend{})
}

// Backend is the description of a fleet.
type Backend struct {
	// The servers, as host:port. They run all the time; Usher decides how
	// many of them are used.
	Servers []string `json:"servers,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.fleet",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Validate checks the list.
func (b *Backend) Validate() error {
	if len(b.Servers) == 0 {
		return errors.New("a fleet needs at least one server")
	}
	return nil
}

// Fingerprint implements scaler.Backend.
func (b *Backend) Fingerprint() string { return strings.Join(b.Servers, " ") }

// Redacted implements scaler.Backend. There is nothing to hide.
func (b *Backend) Redacted() any { return b }

// Open implements scaler.Backend.
func (b *Backend) Open(env scaler.Env) (scaler.Scaler, error) {
	f := &fleet{env: env, free: slices.Clone(b.Servers)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report()
	return f, nil
}

// UnmarshalCaddyfile reads `backend fleet <host:port...>`.
func (b *Backend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the backend
	b.Servers = d.RemainingArgs()
	return nil
}

// A fleet is what runs. It keeps the order of the servers that are in use.
type fleet struct {
	env scaler.Env

	mu     sync.Mutex
	free   []string
	used   []scaler.Instance
	count  int // how many instances there ever were
	closed bool
}

// Scale implements scaler.Scaler.
func (f *fleet) Scale(_ context.Context, order scaler.Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the fleet is closed"}
	}
	f.used = slices.DeleteFunc(f.used, func(i scaler.Instance) bool {
		stop := slices.Contains(order.Stop, i.ID)
		if stop {
			f.free = append(f.free, i.Address)
		}
		return stop
	})
	for len(f.used) < order.Instances && len(f.free) > 0 {
		f.count++
		f.used = append(f.used, scaler.Instance{
			ID:      fmt.Sprintf("%s-%d", f.env.Revision, f.count), // never used again
			Network: "tcp", Address: f.free[0],
			Phase: scaler.PhaseStarting, Since: time.Now(),
		})
		f.free = f.free[1:]
	}
	f.report()
	if missing := order.Instances - len(f.used); missing > 0 {
		return &scaler.Failure{Reason: scaler.ReasonQuota, Short: fmt.Sprintf("the fleet has %d servers too few", missing)}
	}
	return nil
}

// Traits implements scaler.Scaler. No other program uses the fleet, so an order
// can be given before the first report.
func (f *fleet) Traits() scaler.Traits { return scaler.Traits{OrdersBlind: true, Platform: "fleet"} }

// report tells everything that there is. The lock is held.
func (f *fleet) report() {
	f.env.Report(scaler.Report{Instances: slices.Clone(f.used), Desired: len(f.used)})
}

// Close implements scaler.Scaler. The servers go on without us, and no report
// follows.
func (f *fleet) Close(context.Context, time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

var (
	_ caddy.Validator       = (*Backend)(nil)
	_ caddyfile.Unmarshaler = (*Backend)(nil)
	_ scaler.Backend        = (*Backend)(nil)
	_ scaler.Scaler         = (*fleet)(nil)
)
