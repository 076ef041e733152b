package caddymodule

import (
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

// duration reads the one argument of an option as a duration.
func duration(d *caddyfile.Dispenser) (caddy.Duration, error) {
	option := d.Val()
	var s string
	if !d.AllArgs(&s) {
		return 0, d.ArgErr()
	}
	return parseDuration(d, option, s)
}

func parseDuration(d *caddyfile.Dispenser, option, s string) (caddy.Duration, error) {
	v, err := caddy.ParseDuration(s)
	if err != nil {
		return 0, d.Errf("%s: '%s' is not a duration, such as 500ms, 30s or 5m", option, s)
	}
	if v < 0 {
		return 0, d.Errf("%s cannot be negative, but is %s", option, s)
	}
	return caddy.Duration(v), nil
}

// positive is duration, without 0.
func positive(d *caddyfile.Dispenser) (caddy.Duration, error) {
	option := d.Val()
	v, err := duration(d)
	if err == nil && v == 0 {
		return 0, d.Errf("%s must be longer than 0", option)
	}
	return v, err
}

// count reads the current token as a number that is at least least.
func count(d *caddyfile.Dispenser, option string, least int) (int, error) {
	n, err := strconv.Atoi(d.Val())
	if err != nil || n < least {
		return 0, d.Errf("%s: '%s' is not a number of at least %d", option, d.Val(), least)
	}
	return n, nil
}

// countArg reads the one argument of an option as a number.
func countArg(d *caddyfile.Dispenser, least int) (int, error) {
	option := d.Val()
	if !d.NextArg() {
		return 0, d.ArgErr()
	}
	n, err := count(d, option, least)
	if err == nil && d.NextArg() {
		err = d.ArgErr()
	}
	return n, err
}

// serviceOptions are the names of the options of a service.
var serviceOptions = map[string]func(*Service, *caddyfile.Dispenser) error{
	"backend":       (*Service).parseBackend,
	"instances":     (*Service).parseInstances,
	"concurrency":   (*Service).parseConcurrency,
	"idle_timeout":  (*Service).parseIdleTimeout,
	"start_timeout": func(s *Service, d *caddyfile.Dispenser) (err error) { s.StartTimeout, err = positive(d); return err },
	"drain_timeout": func(s *Service, d *caddyfile.Dispenser) error { return optional(&s.DrainTimeout, d) },
	"stop_timeout":  func(s *Service, d *caddyfile.Dispenser) error { return optional(&s.StopTimeout, d) },
	"max_waiting":   (*Service).parseMaxWaiting,
	"balance":       (*Service).parseBalance,
	"ready":         (*Service).parseReady,
	"scale":         (*Service).parseScale,
	"error_detail":  (*Service).parseErrorDetail,
}

func optional(p **caddy.Duration, d *caddyfile.Dispenser) error {
	v, err := duration(d)
	*p = &v
	return err
}

// parseOption reads one option of a service, whose name is the current token.
func (s *Service) parseOption(d *caddyfile.Dispenser, seen map[string]bool) error {
	option := d.Val()
	if seen[option] {
		return d.Errf("%s is given twice", option)
	}
	seen[option] = true
	return serviceOptions[option](s, d)
}

func (s *Service) parseBackend(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("backend needs a type, such as process")
	}
	name := d.Val()
	id := "usher.backends." + name
	// The module gets its tokens from its own name on.
	unm, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	if _, ok := unm.(scaler.Backend); !ok {
		return d.Errf("module %s is a %T, which is not a backend", id, unm)
	}
	s.BackendRaw = caddyconfig.JSONModuleObject(unm, "type", name, nil)
	return nil
}

func (s *Service) parseScale(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("scale needs a policy, such as queue")
	}
	name := d.Val()
	id := "usher.policies." + name
	unm, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	if _, ok := unm.(scaler.Policy); !ok {
		return d.Errf("module %s is a %T, which is not a policy", id, unm)
	}
	s.ScaleRaw = caddyconfig.JSONModuleObject(unm, "policy", name, nil)
	return nil
}

func (s *Service) parseInstances(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	least, err := count(d, "instances", 0)
	if err != nil {
		return err
	}
	b := InstanceBounds{Min: least, Max: max(least, 1)}
	if d.NextArg() {
		if b.Max, err = count(d, "instances", 1); err != nil {
			return err
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if b.Min > b.Max {
		return d.Errf("instances: the minimum %d is greater than the maximum %d", b.Min, b.Max)
	}
	s.Instances = &b
	return nil
}

func (s *Service) parseConcurrency(d *caddyfile.Dispenser) error {
	var v string
	if !d.AllArgs(&v) {
		return d.ArgErr()
	}
	c, err := parseConcurrency(v)
	if err != nil {
		return d.WrapErr(err)
	}
	s.Concurrency = &c
	return nil
}

func (s *Service) parseIdleTimeout(d *caddyfile.Dispenser) error {
	option := d.Val()
	var arg string
	if !d.AllArgs(&arg) {
		return d.ArgErr()
	}
	if arg == "off" {
		off := IdleOff
		s.IdleTimeout = &off
		return nil
	}
	v, err := parseDuration(d, option, arg)
	if err != nil {
		return err
	}
	if v == 0 {
		return d.Errf("idle_timeout must be longer than 0; 'off' keeps the service awake for ever")
	}
	t := IdleTimeout(v)
	s.IdleTimeout = &t
	return nil
}

func (s *Service) parseMaxWaiting(d *caddyfile.Dispenser) error {
	n, err := countArg(d, 0)
	s.MaxWaiting = &n
	return err
}

func (s *Service) parseBalance(d *caddyfile.Dispenser) error {
	if !d.AllArgs(&s.Balance) {
		return d.ArgErr()
	}
	if _, ok := byName(balanceNames, s.Balance); !ok {
		return d.Errf("balance '%s' is unknown: use least_loaded, oldest or random", s.Balance)
	}
	return nil
}

func (s *Service) parseErrorDetail(d *caddyfile.Dispenser) error {
	if !d.AllArgs(&s.ErrorDetail) {
		return d.ArgErr()
	}
	if s.ErrorDetail != detailShort && s.ErrorDetail != detailFull {
		return d.Errf("error_detail '%s' is unknown: use short or full", s.ErrorDetail)
	}
	return nil
}

func (s *Service) parseReady(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	r := &Readiness{Check: d.Val()}
	if d.NextArg() {
		r.Path = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if option := d.Val(); option != "header" && seen[option] {
			return d.Errf("ready: %s is given twice", option)
		}
		seen[d.Val()] = true
		if err := r.parseOption(d); err != nil {
			return err
		}
	}
	if err := r.validate(); err != nil {
		return d.WrapErr(err)
	}
	s.Ready = r
	return nil
}

func (r *Readiness) parseOption(d *caddyfile.Dispenser) (err error) {
	switch option := d.Val(); option {
	case "interval":
		r.Interval, err = positive(d)
	case "timeout":
		r.Timeout, err = positive(d)
	case "status":
		var s string
		if !d.AllArgs(&s) {
			return d.ArgErr()
		}
		if len(s) == 3 && s[1:] == "xx" {
			s = s[:1]
		}
		n, convErr := strconv.Atoi(s)
		if convErr != nil || n < 1 || n > 599 || n > 5 && n < 100 {
			return d.Errf("status '%s' is not a status, such as 200 or 2xx", d.Val())
		}
		r.Status = n
	case "header":
		var name, value string
		if !d.AllArgs(&name, &value) {
			return d.ArgErr()
		}
		if r.Headers == nil {
			r.Headers = make(http.Header)
		}
		r.Headers.Add(name, value)
	case "host":
		if !d.AllArgs(&r.Host) {
			return d.ArgErr()
		}
	case "scheme":
		if !d.AllArgs(&r.Scheme) {
			return d.ArgErr()
		}
	default:
		return d.Errf("unknown option '%s' of ready: use interval, timeout, status, header, host or scheme", option)
	}
	return err
}
