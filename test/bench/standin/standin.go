// Package standin has the module of Caddy that stands in the benchmark for
// what is not being measured: a platform on which the instances simply exist.
//
// It is not part of Usher. The Caddy of the benchmark has it beside it.
package standin

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(new(Existing))
}

// Existing is a backend whose instances exist already, at neighbouring ports
// of one host: so Usher and what it is compared with can use the very same.
// An order starts and stops nothing; it only says how many are reported.
type Existing struct {
	// Host is where all instances are, and Port the port of the first.
	Host string `json:"host"`
	Port int    `json:"port"`

	// Several is true if several Caddys share the instances.
	Several bool `json:"shared,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Existing) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.existing", New: func() caddy.Module { return new(Existing) }}
}

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend existing <host> <port> [shared]
func (e *Existing) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	var port string
	if !d.Args(&e.Host, &port) {
		return d.ArgErr()
	}
	n, err := strconv.Atoi(port)
	e.Port = n
	if d.NextArg() {
		if e.Several = d.Val() == "shared"; !e.Several || d.NextArg() {
			return d.ArgErr()
		}
	}
	return err
}

// Shared implements scaler.Sharer.
func (e *Existing) Shared() bool { return e.Several }

// Open implements scaler.Backend.
func (e *Existing) Open(env scaler.Env) (scaler.Scaler, error) {
	s := &existing{backend: *e, env: env}
	env.Report(scaler.Report{})
	return s, nil
}

// Fingerprint implements scaler.Backend.
func (e *Existing) Fingerprint() string {
	b, _ := json.Marshal(e)
	return string(b)
}

// Redacted implements scaler.Backend.
func (e *Existing) Redacted() any { return *e }

// existing reports the first so many of the instances.
type existing struct {
	backend Existing
	env     scaler.Env

	mu sync.Mutex
}

// Traits says that a start is over when it is accepted.
func (*existing) Traits() scaler.Traits { return scaler.Traits{} }

func (s *existing) Scale(_ context.Context, order scaler.Order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	report := scaler.Report{Desired: order.Instances}
	for i := range order.Instances {
		address := fmt.Sprintf("%s:%d", s.backend.Host, s.backend.Port+i)
		id := fmt.Sprintf("%s-%d", s.env.Revision, i)
		if s.backend.Several {
			id = address // for all Caddys alike
		}
		report.Instances = append(report.Instances, scaler.Instance{
			ID:      id,
			Network: "tcp", Address: address,
			Phase: scaler.PhaseReady, Since: time.Now(),
		})
	}
	s.env.Report(report)
	return nil
}

func (*existing) Close(context.Context, time.Duration) error { return nil }

var (
	_ scaler.Backend        = (*Existing)(nil)
	_ scaler.Scaler         = (*existing)(nil)
	_ caddyfile.Unmarshaler = (*Existing)(nil)
)
