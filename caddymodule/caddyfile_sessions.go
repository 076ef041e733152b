package caddymodule

import (
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
)

// readAffinity reads one source of sessions. It may stand several times.
func readAffinity(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if s.Affinity == nil {
		s.Affinity = new(hub.Affinity)
	}
	if !d.NextArg() {
		return d.Errf("affinity needs a source: cookie, or key <placeholder>")
	}
	source := d.Val()
	if source == "key" {
		return readAffinityKey(s.Affinity, d)
	}
	if source != "cookie" {
		return d.Errf("affinity has no source '%s': use cookie, or key <placeholder>", source)
	}
	if s.Affinity.Cookie != nil {
		return d.Errf("affinity cookie is given twice")
	}
	s.Affinity.Cookie = new(hub.AffinityCookie)
	return readAffinityCookie(s.Affinity.Cookie, d)
}

func readAffinityCookie(c *hub.AffinityCookie, d *caddyfile.Dispenser) error {
	if d.NextArg() {
		c.Name = d.Val()
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := option.Once(d, seen, "affinity cookie: "); err != nil {
			return err
		}
		var text *string
		switch name := d.Val(); name {
		case "max_age":
			var err error
			if c.MaxAge, err = positive(d); err != nil {
				return err
			}
			continue
		case "same_site":
			text = &c.SameSite
		case "path":
			text = &c.Path
		case "domain":
			text = &c.Domain
		default:
			return d.Errf("affinity cookie has no option '%s': use max_age, same_site, path or domain", name)
		}
		if !d.AllArgs(text) {
			return d.ArgErr()
		}
	}
	return nil
}

func readAffinityKey(a *hub.Affinity, d *caddyfile.Dispenser) error {
	value, err := placeholderArg(d, "affinity key")
	if err != nil {
		return err
	}
	key := hub.AffinityKey{Value: value}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "spill":
			if key.Spill {
				return d.Errf("affinity key: spill is given twice")
			}
			if key.Spill = true; d.NextArg() {
				return d.ArgErr()
			}
		default:
			return d.Errf("affinity key has no option '%s': use spill", option)
		}
	}
	a.Keys = append(a.Keys, key)
	return nil
}

// shorthands are what a Caddyfile may write for placeholders. Caddy replaces
// them in sites alone, and a service can be defined in the global options.
var shorthands = sync.OnceValue(httpcaddyfile.NewShorthandReplacer)

// placeholderArg reads the one argument of an option, a placeholder.
func placeholderArg(d *caddyfile.Dispenser, option string) (string, error) {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return "", d.Errf("%s needs one placeholder, such as {client_ip}", option)
	}
	segment := caddyfile.Segment{{Text: args[0]}}
	if strings.HasPrefix(args[0], "{") {
		shorthands().ApplyToSegment(&segment)
	}
	if _, err := hub.PlaceholderName(segment[0].Text); err != nil {
		return "", d.Errf("%s: %v", option, err)
	}
	return segment[0].Text, nil
}

// priority reads one rule for the class of requests. It may stand several times.
func (p *directiveParser) priority(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("priority needs a class: high or low")
	}
	rule := PriorityRule{Class: d.Val()}
	if _, ok := classNames[rule.Class]; !ok {
		return d.Errf("priority '%s' is unknown: use high or low", rule.Class)
	}
	if n := len(p.handler.Priority); n > 0 && p.handler.Priority[n-1].MatchRaw == nil {
		return d.Errf("this priority can never hold: the one before it matches all requests")
	}
	if d.CountRemainingArgs() > 0 {
		set, ok, err := p.helper.WithDispenser(d).MatcherToken()
		switch {
		case err != nil:
			return d.WrapErr(err)
		case !ok:
			return d.Errf("'%s' is not a matcher: use a named one (@name), a path, or *", d.Val())
		case d.NextArg():
			return d.ArgErr()
		}
		if set != nil {
			rule.MatchRaw = caddyhttp.RawMatcherSets{set}
		}
	}
	p.handler.Priority = append(p.handler.Priority, rule)
	return nil
}

// fairBy reads what the requests that wait are parted by.
func (p *directiveParser) fairBy(d *caddyfile.Dispenser) error {
	value, err := placeholderArg(d, "fair_by")
	if err != nil {
		return err
	}
	f := &FairBy{Value: value}
	p.handler.FairBy = f
	seen := false
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch name := d.Val(); {
		case name != "max_waiting":
			return d.Errf("fair_by has no option '%s': use max_waiting", name)
		case seen:
			return d.Errf("fair_by: max_waiting is given twice")
		}
		seen = true
		if f.MaxWaiting, err = option.CountArg(d, 1, scaler.MaxWaiting); err != nil {
			return err
		}
	}
	if err := f.provision(); err != nil {
		return d.Errf("fair_by: %v", err)
	}
	return nil
}
