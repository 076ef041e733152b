package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
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
	caddy.RegisterModule(ThermostatPolicy{})
}

// ThermostatPolicy keeps a metric near a target by adding and removing
// instances. It acts on two readings in a row, and waits until a change has had
// its effect. If the metric cannot be read, the number of instances stays.
type ThermostatPolicy struct {
	// Where the metric comes from.
	MetricRaw json.RawMessage `json:"metric,omitempty" caddy:"namespace=usher.metrics inline_key=source"`

	// What the metric is kept near. It must be greater than 0.
	Aim float64 `json:"target"`

	// How far from the target the metric may be. Default: a tenth of the target.
	Deadband float64 `json:"deadband,omitempty"`

	// Whether more instances raise the metric. Default: they lower it, as they
	// do a queue, a latency or a load for each instance.
	Raises bool `json:"raises,omitempty"`

	// How many instances are added and removed at most at a time. Defaults: as
	// many as there are, and 1.
	StepUp   int `json:"step_up,omitempty"`
	StepDown int `json:"step_down,omitempty"`

	// How long after a change the next one may come. Default: as long as starts
	// and readings take, measured.
	Cooldown caddy.Duration `json:"cooldown,omitempty"`

	policies.Thermostat `json:"-"`
}

// CaddyModule returns the Caddy module information.
func (ThermostatPolicy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.policies.thermostat",
		New: func() caddy.Module { return new(ThermostatPolicy) },
	}
}

// Provision sets up the policy.
func (p *ThermostatPolicy) Provision(ctx caddy.Context) error {
	if len(p.MetricRaw) == 0 {
		return errors.New("the policy thermostat needs a metric")
	}
	mod, err := ctx.LoadModule(p, "MetricRaw")
	if err != nil {
		return fmt.Errorf("metric: %w", err)
	}
	source, ok := mod.(scaler.Metric)
	if !ok {
		return fmt.Errorf("the module %T is no source of a metric", mod)
	}
	p.Thermostat = policies.Thermostat{
		Source: source, Value: p.Aim, Deadband: p.Deadband, Raises: p.Raises,
		StepUp: p.StepUp, StepDown: p.StepDown, Cooldown: time.Duration(p.Cooldown),
	}
	return nil
}

// Validate checks the values.
func (p *ThermostatPolicy) Validate() error {
	switch {
	case !(p.Aim > 0) || math.IsInf(p.Aim, 0):
		return fmt.Errorf("target must be a number greater than 0, not %v: a metric that is to be 0 needs a small target, such as 0.1", p.Aim)
	case !(p.Deadband >= 0 && p.Deadband < p.Aim):
		return fmt.Errorf("deadband must be from 0 to less than the target %v, not %v", p.Aim, p.Deadband)
	case p.StepUp < 0 || p.StepUp > scaler.MaxInstances || p.StepDown < 0 || p.StepDown > scaler.MaxInstances:
		return fmt.Errorf("step must be between 1 and %d, not %d and %d", scaler.MaxInstances, p.StepUp, p.StepDown)
	}
	return hub.CheckDuration("cooldown", p.Cooldown)
}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	scale thermostat {
//		metric   <source> { ... }
//		target   <value>
//		deadband <value>
//		effect   lowers|raises
//		step     <up> [<down>]
//		cooldown <duration>
//	}
func (p *ThermostatPolicy) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	complete := func() error {
		if len(p.MetricRaw) == 0 {
			return errors.New("the policy thermostat needs a metric: metric prometheus { ... }, metric http { ... } or metric service <what>")
		}
		return p.Validate()
	}
	return option.Block(d, complete, func() error { return p.readOption(d) })
}

func (p *ThermostatPolicy) readOption(d *caddyfile.Dispenser) (err error) {
	switch name := d.Val(); name {
	case "metric":
		return p.readMetric(d)
	case "target":
		p.Aim, err = number(d)
	case "deadband":
		p.Deadband, err = number(d)
	case "effect":
		var effect string
		if !d.AllArgs(&effect) || effect != "lowers" && effect != "raises" {
			return d.Err("effect is lowers or raises: what more instances do to the metric")
		}
		p.Raises = effect == "raises"
	case "step":
		if !d.NextArg() {
			return d.ArgErr()
		}
		if p.StepUp, err = option.Count(d, "step", 1, scaler.MaxInstances); err == nil && d.NextArg() {
			p.StepDown, err = option.Count(d, "step", 1, scaler.MaxInstances)
		}
		if err == nil && d.NextArg() {
			err = d.ArgErr()
		}
	case "cooldown":
		p.Cooldown, err = positive(d)
	default:
		err = d.Errf("unknown option '%s' of the policy thermostat: use metric, target, deadband, effect, step or cooldown", name)
	}
	return err
}

func (p *ThermostatPolicy) readMetric(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("metric needs a source: prometheus, http or service")
	}
	name := d.Val()
	unm, err := readModule[scaler.Metric](d, "usher.metrics", "metric")
	if err != nil {
		return err
	}
	p.MetricRaw, err = moduleObject(unm, "source", name)
	return err
}

// number reads the one argument of an option as a number.
func number(d *caddyfile.Dispenser) (float64, error) {
	name := d.Val()
	var s string
	if !d.AllArgs(&s) {
		return 0, d.ArgErr()
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, d.Errf("%s: '%s' is not a number", name, s)
	}
	return v, nil
}

var (
	_ caddy.Provisioner     = (*ThermostatPolicy)(nil)
	_ caddy.Validator       = (*ThermostatPolicy)(nil)
	_ caddyfile.Unmarshaler = (*ThermostatPolicy)(nil)
	_ scaler.Metered        = (*ThermostatPolicy)(nil)
)
