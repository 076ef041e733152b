package caddymodule

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
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
	if err := hub.CheckDuration(option, caddy.Duration(v)); err != nil {
		return 0, d.WrapErr(err)
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

// serviceOptions are the names of the options of a service.
var serviceOptions = map[string]func(*hub.ServiceConfig, *caddyfile.Dispenser) error{
	"backend":      readBackend,
	"instances":    readInstances,
	"concurrency":  readConcurrency,
	"idle_timeout": readIdleTimeout,
	"start_timeout": func(s *hub.ServiceConfig, d *caddyfile.Dispenser) (err error) {
		s.StartTimeout, err = positive(d)
		return err
	},
	"start_attempts": readStartAttempts,
	"drain_timeout":  func(s *hub.ServiceConfig, d *caddyfile.Dispenser) error { return optional(&s.DrainTimeout, d) },
	"stop_timeout":   func(s *hub.ServiceConfig, d *caddyfile.Dispenser) error { return optional(&s.StopTimeout, d) },
	"max_waiting":    readMaxWaiting,
	"overlap":        readOverlap,
	"needs":          readNeeds,
	"group":          readGroup,
	"max_requests":   readMaxRequests,
	"max_age":        readMaxAge,
	"busy":           readBusy,
	"balance":        readBalance,
	"ready":          readReady,
	"scale":          readScale,
	"at":             readAt,
	"error_detail":   readErrorDetail,
	"affinity":       readAffinity,
	"session_timeout": func(s *hub.ServiceConfig, d *caddyfile.Dispenser) (err error) {
		s.SessionTimeout, err = positive(d)
		return err
	},
}

func optional(p **caddy.Duration, d *caddyfile.Dispenser) error {
	v, err := duration(d)
	*p = &v
	return err
}

// readOption reads one option of a service, whose name is the current token.
func readOption(s *hub.ServiceConfig, d *caddyfile.Dispenser, seen map[string]bool) error {
	name := d.Val()
	if several := name == "affinity" || name == "needs" || name == "at"; !several || !seen[name] {
		if err := option.Once(d, seen, ""); err != nil {
			return err
		}
	}
	return serviceOptions[name](s, d)
}

func readBackend(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("backend needs a type, such as process")
	}
	name := d.Val()
	unm, err := readModule[scaler.Backend](d, "usher.backends", "backend")
	if err != nil {
		return err
	}
	s.BackendRaw, err = moduleObject(unm, "type", name)
	return err
}

// readModule reads the module of the namespace whose name is the current token,
// with its arguments and its block. kind says in errors what such a module is.
func readModule[T any](d *caddyfile.Dispenser, namespace, kind string) (T, error) {
	var none T
	name := d.Val()
	id := namespace + "." + name
	if _, err := caddy.GetModule(id); err != nil {
		var known []string
		for _, info := range caddy.GetModules(namespace) {
			known = append(known, info.ID.Name())
		}
		return none, d.Errf("there is no %s '%s': this Caddy has %s", kind, name, strings.Join(known, ", "))
	}
	unm, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return none, err
	}
	m, ok := unm.(T)
	if !ok {
		return none, d.Errf("module %s is a %T, which is not a %s", id, unm, kind)
	}
	return m, nil
}

// moduleObject encodes a module with its name in the given key. It decodes
// nothing for that, as caddyconfig.JSONModuleObject does.
func moduleObject(module any, key, name string) (json.RawMessage, error) {
	raw, err := json.Marshal(module)
	if err != nil {
		return nil, err
	}
	return hub.WithKey(raw, key, name)
}

func readScale(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("scale needs a policy, such as queue")
	}
	name := d.Val()
	unm, err := readModule[scaler.Policy](d, "usher.policies", "policy")
	if err != nil {
		return err
	}
	s.ScaleRaw, err = moduleObject(unm, "policy", name)
	return err
}

func readInstances(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	least, err := option.Count(d, "instances", 0, scaler.MaxInstances)
	if err != nil {
		return err
	}
	b := hub.InstanceBounds{Min: least, Max: max(least, 1)}
	if d.NextArg() {
		if b.Max, err = option.Count(d, "instances", 1, scaler.MaxInstances); err != nil {
			return err
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if b.Min > b.Max {
		return d.Errf("instances: the minimum %d is greater than the maximum %d", b.Min, b.Max)
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "awake" || b.Awake > 0 {
			return d.Errf("instances: '%s' is unknown here, or given twice: use awake and a number, once", d.Val())
		}
		if b.Awake, err = option.CountArg(d, 1, b.Max); err != nil {
			return err
		}
	}
	s.Instances = &b
	return nil
}

func readConcurrency(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	var v string
	if !d.AllArgs(&v) {
		return d.ArgErr()
	}
	c, err := hub.ParseConcurrency(v)
	if err != nil {
		return d.WrapErr(err)
	}
	s.Concurrency = &c
	return nil
}

func readIdleTimeout(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	option := d.Val()
	var arg string
	if !d.AllArgs(&arg) {
		return d.ArgErr()
	}
	if arg == "off" {
		off := hub.IdleOff
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
	t := hub.IdleTimeout(v)
	s.IdleTimeout = &t
	return nil
}

func readMaxWaiting(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	n, err := option.CountArg(d, 0, scaler.MaxWaiting)
	s.MaxWaiting = &n
	return err
}

func readStartAttempts(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	n, err := option.CountArg(d, 1, math.MaxInt)
	if err == nil {
		if err = hub.CheckStartAttempts(n); err != nil {
			err = d.WrapErr(err)
		}
	}
	s.StartAttempts = &n
	return err
}

func readOverlap(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	on, err := option.OnOff(d)
	s.Overlap = hub.OverlapNames[control.OverlapOff]
	if on {
		s.Overlap = hub.OverlapNames[control.OverlapOn]
	}
	return err
}

func readBalance(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.AllArgs(&s.Balance) {
		return d.ArgErr()
	}
	if _, ok := hub.ByName(hub.BalanceNames, s.Balance); !ok {
		return d.Errf("balance '%s' is unknown: use least_loaded, oldest or random", s.Balance)
	}
	return nil
}

func readErrorDetail(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.AllArgs(&s.ErrorDetail) {
		return d.ArgErr()
	}
	if s.ErrorDetail != hub.DetailShort && s.ErrorDetail != hub.DetailFull {
		return d.Errf("error_detail '%s' is unknown: use short or full", s.ErrorDetail)
	}
	return nil
}

func readReady(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	r := &hub.Readiness{Check: d.Val()}
	if d.NextArg() {
		r.Path = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "header" {
			if err := option.Once(d, seen, "ready: "); err != nil {
				return err
			}
		}
		if err := readReadiness(r, d); err != nil {
			return err
		}
	}
	if err := r.Validate(); err != nil {
		return d.WrapErr(err)
	}
	s.Ready = r
	return nil
}

func readReadiness(r *hub.Readiness, d *caddyfile.Dispenser) (err error) {
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
