package caddymodule

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

func init() {
	caddy.RegisterModule(QueuePolicy{})
}

// QueuePolicy wants as many instances as the requests in use and waiting need. It goes up at once, and down to the highest need of the
// last while; one instance stays until the idle timeout.
type QueuePolicy struct {
	// The part of the slots that shall be in use, from 0.01 to 1. A lower
	// value keeps room for bursts. Default: 1.
	Utilization float64 `json:"utilization,omitempty"`

	// For how long a need is remembered. Default: 1m.
	DownWindow caddy.Duration `json:"down_window,omitempty"`

	// How long requests may wait for a slot. No instance is started for
	// requests that are served sooner than that. Default: not at all.
	TargetWait caddy.Duration `json:"target_wait,omitempty"`

	policies.Queue `json:"-"`
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
	p.Queue = policies.Queue{Utilization: p.Utilization, DownWindow: time.Duration(p.DownWindow), TargetWait: time.Duration(p.TargetWait)}
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
	if p.Utilization != 0 {
		if err := checkUtilization(p.Utilization); err != nil {
			return err
		}
	}
	if err := hub.CheckDuration("target_wait", p.TargetWait); err != nil {
		return err
	}
	return hub.CheckDuration("down_window", p.DownWindow)
}

func checkUtilization(u float64) error {
	if !(u >= scaler.MinUtilization && u <= 1) {
		return fmt.Errorf("utilization must be between %v and 1, not %v", scaler.MinUtilization, u)
	}
	return nil
}

func (p *QueuePolicy) complete() error {
	p.dropDefaults()
	return p.Validate()
}

func utilization(d *caddyfile.Dispenser) (float64, error) {
	var s string
	if !d.AllArgs(&s) {
		return 0, d.ArgErr()
	}
	u, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, d.Errf("utilization must be a number between %v and 1, not '%s'", scaler.MinUtilization, s)
	}
	if err := checkUtilization(u); err != nil {
		return 0, d.WrapErr(err)
	}
	return u, nil
}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	scale queue {
//		utilization <0.01..1>
//		down_window <duration>
//		target_wait <duration>
//	}
func (p *QueuePolicy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Block(d, p.complete, func() (err error) {
		switch name := d.Val(); name {
		case "utilization":
			p.Utilization, err = utilization(d)
		case "down_window":
			p.DownWindow, err = positive(d)
		case "target_wait":
			p.TargetWait, err = positive(d)
		default:
			err = d.Errf("unknown option '%s' of the policy queue: use utilization, down_window or target_wait", name)
		}
		return err
	})
}

var (
	_ caddy.Provisioner     = (*QueuePolicy)(nil)
	_ caddy.Validator       = (*QueuePolicy)(nil)
	_ caddyfile.Unmarshaler = (*QueuePolicy)(nil)
	_ scaler.Policy         = (*QueuePolicy)(nil)
)
