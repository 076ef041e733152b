// Package spare is a policy that keeps some slots free.
package spare

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(Policy{})
}

// Policy wants as many instances as demand and the spare slots need.
type Policy struct {
	// How many slots should be free while the service is awake, up to 1000.
	// Default: 0.
	Slots int `json:"slots,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Policy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.policies.spare",
		New: func() caddy.Module { return new(Policy) },
	}
}

// Validate checks the number.
func (p *Policy) Validate() error {
	if p.Slots < 0 || p.Slots > 1000 {
		return fmt.Errorf("slots must be between 0 and 1000, not %d", p.Slots)
	}
	return nil
}

// Window implements scaler.Policy. This policy needs no history.
func (p *Policy) Window() time.Duration { return 0 }

// look is how often the policy looks whether demand has fallen.
const look = 10 * time.Second

// Target implements scaler.Policy.
func (p *Policy) Target(in scaler.Inputs, _ scaler.Memory) (scaler.Advice, scaler.Memory) {
	var advice scaler.Advice
	asleep := in.IdleSince.Add(in.IdleTimeout)
	if in.Demand > 0 { // it may end at any moment, and then IdleTimeout begins
		asleep = in.Now.Add(in.IdleTimeout)
	}
	switch {
	case in.Demand == 0 && in.IdleTimeout > 0 && !in.Now.Before(asleep):
		advice.Target, advice.Idle = in.Min, true
		advice.Reason = fmt.Sprintf("idle for %v", in.IdleTimeout)
	case in.Demand == 0 && in.Running == 0:
		advice.Target, advice.Reason = in.Min, "no demand"
	default:
		advice.Target = min(max(p.enough(in), in.Min, 1), in.Max)
		advice.Reason = fmt.Sprintf("%d requests, %d slots to spare", in.Demand, p.Slots)
		advice.Recheck = in.Now.Add(look)
		if in.IdleTimeout > 0 && asleep.Before(advice.Recheck) {
			advice.Recheck = asleep
		}
	}
	// With more demand than this, the answer changes at once.
	if advice.Mark = advice.Target*in.Concurrency - p.Slots; advice.Target == 0 || advice.Mark < 0 {
		advice.Mark = 0
	}
	if advice.Target == in.Max || advice.Target > 0 && in.Concurrency == 0 {
		advice.Mark = scaler.NoMark
	}
	return advice, nil
}

// enough is how many instances have room for the demand and the spare slots.
func (p *Policy) enough(in scaler.Inputs) int {
	if in.Concurrency == 0 { // unlimited
		return 1
	}
	return (in.Demand + p.Slots + in.Concurrency - 1) / in.Concurrency
}

// UnmarshalCaddyfile reads the policy. Syntax:
//
//	scale spare {
//		slots <n>
//	}
func (p *Policy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the policy
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var n string
		if d.Val() != "slots" || !d.AllArgs(&n) {
			return d.Err("the policy spare takes slots <n>")
		}
		var err error
		if p.Slots, err = strconv.Atoi(n); err != nil {
			return d.Errf("slots: '%s' is not a number", n)
		}
	}
	return nil
}

var (
	_ caddy.Validator       = (*Policy)(nil)
	_ caddyfile.Unmarshaler = (*Policy)(nil)
	_ scaler.Policy         = (*Policy)(nil)
)
