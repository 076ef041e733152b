package caddymodule

import (
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/docker/go-units"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/option"
)

// async reads which requests are stored, and how they are executed.
func (p *directiveParser) async(d *caddyfile.Dispenser) error {
	a := new(Async)
	p.handler.Async = a
	set, ok, err := p.helper.WithDispenser(d).MatcherToken()
	if err != nil {
		return d.WrapErr(err)
	}
	if ok && set != nil {
		a.MatchRaw = caddyhttp.RawMatcherSets{set}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := option.Once(d, seen, "async: "); err != nil {
			return err
		}
		if err := readAsyncOption(a, d); err != nil {
			return err
		}
	}
	check := *a
	if err := check.fill(); err != nil {
		return d.Errf("async: %v", err)
	}
	return nil
}

func readAsyncOption(a *Async, d *caddyfile.Dispenser) (err error) {
	switch name := d.Val(); name {
	case "when":
		return oneArg(d, &a.When)
	case "store":
		return readStore(a, d)
	case "group":
		a.Group, err = placeholderArg(d, "group")
	case "exclusive":
		return oneArg(d, &a.Exclusive)
	case "attempts":
		a.Attempts, err = option.CountArg(d, 1, mostAttempts)
	case "backoff":
		return readBackoff(a, d)
	case "timeout":
		a.Timeout, err = positive(d)
	case "retry_on":
		return readRetryOn(a, d)
	case "expires":
		a.Expires, err = positive(d)
	case "keep":
		a.Keep, err = positive(d)
	case "max_body":
		a.MaxBody, err = sizeArg(d)
	case "max_result":
		a.MaxResult, err = sizeArg(d)
	case "max_tasks":
		a.MaxTasks, err = option.CountArg(d, 1, mostTasks)
	case "headers":
		if a.Headers = d.RemainingArgs(); len(a.Headers) == 0 {
			return d.ArgErr()
		}
	case "encrypt":
		return oneArg(d, &a.Encrypt)
	case "callback":
		a.Callback = new(Callback)
		return a.Callback.read(d)
	default:
		return d.Errf("async has no option '%s': use when, store, group, exclusive, attempts, backoff, timeout, retry_on, expires, keep, max_body, max_result, max_tasks, headers, encrypt or callback", name)
	}
	return err
}

func oneArg(d *caddyfile.Dispenser, to *string) error {
	if !d.AllArgs(to) {
		return d.ArgErr()
	}
	return nil
}

// readStore reads the store, which is a module.
func readStore(a *Async, d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("store needs a kind, such as file")
	}
	name := d.Val()
	module, err := readModule[async.Opener](d, "usher.stores", "store")
	if err != nil {
		return err
	}
	a.StoreRaw, err = moduleObject(module, "type", name)
	return err
}

func readBackoff(a *Async, d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.Errf("backoff needs the first pause and the longest one, such as 1s 10m")
	}
	for k, to := range []*caddy.Duration{&a.BackoffFrom, &a.BackoffTo} {
		v, err := caddy.ParseDuration(args[k])
		if err != nil || v <= 0 {
			return d.Errf("backoff: '%s' is not a duration longer than 0, such as 1s", args[k])
		}
		*to = caddy.Duration(v)
	}
	return nil
}

func readRetryOn(a *Async, d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, arg := range args {
		status, err := strconv.Atoi(arg)
		if err != nil {
			return d.Errf("retry_on: '%s' is not a status, such as 503", arg)
		}
		if !slices.Contains(a.RetryOn, status) {
			a.RetryOn = append(a.RetryOn, status)
		}
	}
	return nil
}

// sizeArg reads a size, such as 100MB.
func sizeArg(d *caddyfile.Dispenser) (int64, error) {
	name := d.Val()
	var text string
	if !d.AllArgs(&text) {
		return 0, d.ArgErr()
	}
	n, err := units.FromHumanSize(text)
	if err != nil || n <= 0 {
		return 0, d.Errf("%s: '%s' is not a size, such as 100MB", name, text)
	}
	return n, nil
}
