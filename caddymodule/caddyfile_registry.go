package caddymodule

import (
	"encoding/json"
	"fmt"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
)

// parseTemplate reads
//
//	template <name> {
//		<options of a service>
//		param <name> <pattern>|one_of <value...> [env] [request] [default <value>]
//		max_services <n>
//	}
func (a *App) parseTemplate(d *caddyfile.Dispenser) error {
	var name string
	if !d.AllArgs(&name) {
		return d.ArgErr()
	}
	if err := hub.CheckName(name); err != nil {
		return d.WrapErr(err)
	}
	if a.Templates[name] != nil {
		return d.Errf("template %s is given twice", name)
	}
	place := d.Token()
	t := &Template{Service: new(hub.ServiceConfig)}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch word := d.Val(); {
		case word == "param":
			err = t.parseParam(d)
		case word == "max_services":
			if err = option.Once(d, seen, ""); err == nil {
				t.MaxServices, err = option.CountArg(d, 1, mostServices)
			}
		case serviceOptions[word] != nil:
			err = readOption(t.Service, d, seen)
		default:
			err = d.Errf("unknown option '%s': use param, max_services and the options of a service; those of a place, such as wait_timeout, belong to the directive", word)
		}
		if err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
	}
	if _, err := a.newTemplate(t); err != nil {
		return atToken(place).Errf("template %s: %v", name, err)
	}
	if a.Templates == nil {
		a.Templates = make(map[string]*Template)
	}
	a.Templates[name] = t
	return nil
}

func (t *Template) parseParam(d *caddyfile.Dispenser) error {
	words := d.RemainingArgs()
	if len(words) < 2 {
		return d.ArgErr()
	}
	name := words[0]
	if _, ok := t.Params[name]; ok {
		return d.Errf("param %s is given twice", name)
	}
	var p registry.Param
	rest := words[2:]
	if words[1] != "one_of" {
		p.Pattern = words[1]
	} else {
		for len(rest) > 0 && !paramWords[rest[0]] {
			p.OneOf, rest = append(p.OneOf, rest[0]), rest[1:]
		}
		if len(p.OneOf) == 0 {
			return d.Errf("param %s: one_of needs values", name)
		}
	}
	for len(rest) > 0 {
		switch word := rest[0]; {
		case word == "env":
			p.Env = true
		case word == "request":
			p.Request = true
		case word == "default" && len(rest) > 1:
			value := rest[1]
			p.Default, rest = &value, rest[1:]
		default:
			return d.Errf("param %s: '%s' is not understood here: use env, request, or default and a value", name, word)
		}
		rest = rest[1:]
	}
	if t.Params == nil {
		t.Params = make(map[string]registry.Param)
	}
	t.Params[name] = p
	return nil
}

// paramWords end the values of one_of.
var paramWords = map[string]bool{"env": true, "request": true, "default": true}

// parseRegistry reads
//
//	registry {
//		allow template|backend|host <name...>
//		owner_limit <n>
//		forget <duration>
//		keep_revisions <n>
//		discover <platform> { ... }
//	}
func parseRegistry(d *caddyfile.Dispenser) (*Registry, error) {
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	place := d.Token()
	r := new(Registry)
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word := d.Val()
		if word != "allow" && word != "discover" {
			if err := option.Once(d, seen, "registry: "); err != nil {
				return nil, err
			}
		}
		var err error
		switch word {
		case "allow":
			err = r.parseAllow(d)
		case "owner_limit":
			r.OwnerLimit, err = option.CountArg(d, 1, mostServices)
		case "forget":
			r.Forget, err = positive(d)
		case "keep_revisions":
			r.KeepRevisions, err = option.CountArg(d, 1, mostKeepRevisions)
		case "discover":
			err = r.parseDiscover(d)
		default:
			err = d.Errf("unknown option '%s' of registry: use allow, owner_limit, forget, keep_revisions or discover", word)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := r.validate(); err != nil {
		return nil, atToken(place).Errf("registry: %v", err)
	}
	return r, nil
}

func (r *Registry) parseAllow(d *caddyfile.Dispenser) error {
	words := d.RemainingArgs()
	if len(words) < 2 {
		return d.ArgErr()
	}
	switch words[0] {
	case "template":
		r.AllowTemplates = append(r.AllowTemplates, words[1:]...)
	case "backend":
		r.AllowBackends = append(r.AllowBackends, words[1:]...)
	case "host":
		r.AllowHosts = append(r.AllowHosts, words[1:]...)
	default:
		return d.Errf("allow: '%s' is unknown: use template, backend or host", words[0])
	}
	return nil
}

func (r *Registry) parseDiscover(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("discover needs a platform, such as kubernetes")
	}
	name := d.Val()
	if _, given := r.DiscoverRaw[name]; given {
		return d.Errf("discover %s is given twice", name)
	}
	unm, err := readModule[scaler.Discoverer](d, "usher.discovery", "platform to discover services on:")
	if err != nil {
		return err
	}
	raw, err := json.Marshal(unm)
	if err != nil {
		return err
	}
	if r.DiscoverRaw == nil {
		r.DiscoverRaw = make(map[string]json.RawMessage)
	}
	r.DiscoverRaw[name] = raw
	return nil
}
