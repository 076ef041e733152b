package caddymodule

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/policies"
)

func init() {
	caddy.RegisterModule(AdaptivePolicy{})
}

// AdaptivePolicy learns how long the service takes to start, how long its
// requests take and when they come. It starts another instance only if waiting
// requests would not be served sooner by those that are starting, keeps an idle
// one for as long as the service's own pauses make worth it, and starts one
// before a request that is likely to come. The service's idle_timeout is what it
// is worth to spare a request the whole wait for a start, in time of an idle
// instance. Until two pauses are known, the last instance stays for that long.
// It is the default policy.
type AdaptivePolicy struct {
	// Whether instances are started before requests that are likely to come.
	// Default: true.
	Prewarm *bool `json:"prewarm,omitempty"`

	// How long the last instance stays without a request in any case.
	// Default: no such promise.
	MinIdle caddy.Duration `json:"min_idle,omitempty"`

	// How long the last instance stays without a request at most, and how long
	// one waits for a request that was started before it. Default: four times
	// the service's `idle_timeout`.
	MaxIdle caddy.Duration `json:"max_idle,omitempty"`

	// How long requests may wait for a slot. As many instances are started as
	// that takes, up to the maximum. Default: no limit.
	TargetWait caddy.Duration `json:"target_wait,omitempty"`

	policies.Adaptive `json:"-"`
}

// CaddyModule returns the Caddy module information.
func (AdaptivePolicy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.policies.adaptive",
		New: func() caddy.Module { return new(AdaptivePolicy) },
	}
}

// Provision sets up the policy.
func (p *AdaptivePolicy) Provision(caddy.Context) error {
	p.dropDefaults()
	p.Adaptive = policies.Adaptive{
		NoPrewarm: p.Prewarm != nil && !*p.Prewarm, MinIdle: time.Duration(p.MinIdle), MaxIdle: time.Duration(p.MaxIdle),
		TargetWait: time.Duration(p.TargetWait),
	}
	return nil
}

// dropDefaults makes a policy that spells its defaults out equal to one that
// does not.
func (p *AdaptivePolicy) dropDefaults() {
	if p.Prewarm != nil && *p.Prewarm {
		p.Prewarm = nil
	}
}

// Validate checks the values.
func (p *AdaptivePolicy) Validate() error {
	for _, o := range []struct {
		name  string
		value caddy.Duration
	}{{"min_idle", p.MinIdle}, {"max_idle", p.MaxIdle}, {"target_wait", p.TargetWait}} {
		if err := hub.CheckDuration(o.name, o.value); err != nil {
			return err
		}
	}
	if p.MaxIdle > 0 && p.MinIdle > p.MaxIdle {
		return fmt.Errorf("min_idle %v is longer than max_idle %v", time.Duration(p.MinIdle), time.Duration(p.MaxIdle))
	}
	return nil
}

func (p *AdaptivePolicy) complete() error {
	p.dropDefaults()
	return p.Validate()
}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	scale adaptive {
//		prewarm     on|off
//		min_idle    <duration>
//		max_idle    <duration>
//		target_wait <duration>
//	}
func (p *AdaptivePolicy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Block(d, p.complete, func() (err error) {
		switch name := d.Val(); name {
		case "prewarm":
			var on bool
			on, err = option.OnOff(d)
			p.Prewarm = &on
		case "min_idle":
			p.MinIdle, err = positive(d)
		case "max_idle":
			p.MaxIdle, err = positive(d)
		case "target_wait":
			p.TargetWait, err = positive(d)
		default:
			err = d.Errf("unknown option '%s' of the policy adaptive: use prewarm, min_idle, max_idle or target_wait", name)
		}
		return err
	})
}

var (
	_ caddy.Provisioner     = (*AdaptivePolicy)(nil)
	_ caddy.Validator       = (*AdaptivePolicy)(nil)
	_ caddyfile.Unmarshaler = (*AdaptivePolicy)(nil)
	_ scaler.Policy         = (*AdaptivePolicy)(nil)
	_ scaler.Rememberer     = (*AdaptivePolicy)(nil)
)
