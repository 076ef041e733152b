package caddymodule

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(QueuePolicy{})
}

// QueuePolicy is the default policy: as many instances as the requests in use
// and waiting need. It goes up at once, and down to the highest need of the
// last while; one instance stays until the idle timeout.
type QueuePolicy struct {
	// The part of the slots that shall be in use, above 0 and at most 1. A
	// lower value keeps room for bursts. Default: 1.
	Utilization float64 `json:"utilization,omitempty"`

	// For how long a need is remembered. Default: 1m.
	DownWindow caddy.Duration `json:"down_window,omitempty"`

	scaler.Queue `json:"-"`
}

// CaddyModule returns the Caddy module information.
func (QueuePolicy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.policies.queue",
		New: func() caddy.Module { return new(QueuePolicy) },
	}
}

// Provision sets up the policy.
func (p *QueuePolicy) Provision(caddy.Context) error {
	p.dropDefaults()
	p.Queue = scaler.Queue{Utilization: p.Utilization, DownWindow: time.Duration(p.DownWindow)}
	return nil
}

// dropDefaults makes a policy that spells its defaults out equal to one that
// does not.
func (p *QueuePolicy) dropDefaults() {
	if p.Utilization == 1 {
		p.Utilization = 0
	}
	if p.DownWindow == caddy.Duration(time.Minute) {
		p.DownWindow = 0
	}
}

// Validate checks the values.
func (p *QueuePolicy) Validate() error {
	if p.Utilization < 0 || p.Utilization > 1 {
		return fmt.Errorf("utilization must be above 0 and at most 1, not %v", p.Utilization)
	}
	if p.DownWindow < 0 {
		return fmt.Errorf("down_window cannot be negative")
	}
	return nil
}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	scale queue {
//		utilization <0..1>
//		down_window <duration>
//	}
func (p *QueuePolicy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s is given twice", option)
		}
		seen[option] = true
		switch option {
		case "utilization":
			var s string
			if !d.AllArgs(&s) {
				return d.ArgErr()
			}
			u, err := strconv.ParseFloat(s, 64)
			if err != nil || !(u > 0 && u <= 1) {
				return d.Errf("utilization must be a number above 0 and at most 1, not '%s'", s)
			}
			p.Utilization = u
		case "down_window":
			w, err := duration(d)
			if err != nil {
				return err
			}
			if w <= 0 {
				return d.Errf("down_window must be positive")
			}
			p.DownWindow = w
		default:
			return d.Errf("unknown option '%s' of the policy queue: use utilization or down_window", option)
		}
	}
	p.dropDefaults()
	return nil
}

var (
	_ caddy.Provisioner     = (*QueuePolicy)(nil)
	_ caddy.Validator       = (*QueuePolicy)(nil)
	_ caddyfile.Unmarshaler = (*QueuePolicy)(nil)
	_ scaler.Policy         = (*QueuePolicy)(nil)
)
