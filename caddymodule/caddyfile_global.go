package caddymodule

import (
	"encoding/json"
	"fmt"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("usher", parseGlobal)
}

// parseGlobal reads the global option. Syntax:
//
//	usher {
//		service <name> { options of the service }
//		ports <from>-<to>
//		start_limit <n>
//		max_waiting <n>
//		on_exit stop|keep
//		cluster [<name>] { options of the cluster }
//		template <name> { options of the services, and params }
//		registry { which services may be made while Caddy runs }
//		<backend> { options that its services share }
//	}
//
// It may stand several times; each option once.
func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	app := &App{}
	if before, ok := existing.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(before.Value, app); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	d.Next()
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	for d.NextBlock(0) {
		if err := app.parseOption(d); err != nil {
			return nil, err
		}
	}
	return httpcaddyfile.App{Name: "usher", Value: caddyconfig.JSON(app, nil)}, nil
}

func (a *App) parseOption(d *caddyfile.Dispenser) (err error) {
	name := d.Val()
	if map[string]bool{"ports": a.Ports != "", "start_limit": a.StartLimit != 0, "max_waiting": a.MaxWaiting != nil, "on_exit": a.OnExit != "", "cluster": a.Cluster != nil, "registry": a.Registry != nil}[name] {
		return d.Errf("%s is given twice", name)
	}
	switch name {
	case "service":
		return a.parseService(d)
	case "ports":
		if !d.AllArgs(&a.Ports) {
			return d.ArgErr()
		}
		if _, _, err = parsePorts(a.Ports); err != nil {
			return d.WrapErr(err)
		}
	case "start_limit":
		a.StartLimit, err = option.CountArg(d, 1, hub.MaxStartLimit)
	case "max_waiting":
		var n int
		n, err = option.CountArg(d, 0, scaler.MaxWaiting)
		a.MaxWaiting = &n
	case "on_exit":
		if !d.AllArgs(&a.OnExit) {
			return d.ArgErr()
		}
		if a.OnExit != onExitStop && a.OnExit != onExitKeep {
			return d.Errf("on_exit '%s' is unknown: use stop or keep", a.OnExit)
		}
	case "cluster":
		a.Cluster, err = parseCluster(d)
	case "template":
		return a.parseTemplate(d)
	case "registry":
		a.Registry, err = parseRegistry(d)
	default:
		if ok, err := a.parseDefaults(d); ok {
			return err
		}
		return d.Errf("unknown option '%s' of usher: use service, template, registry, ports, start_limit, max_waiting, on_exit or cluster", name)
	}
	return err
}

func (a *App) parseService(d *caddyfile.Dispenser) error {
	var name string
	if !d.AllArgs(&name) {
		return d.ArgErr()
	}
	if err := hub.CheckName(name); err != nil {
		return d.WrapErr(err)
	}
	place := d.Token()
	var s hub.ServiceConfig
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if _, ok := serviceOptions[d.Val()]; !ok {
			return d.Errf("service %s: unknown option '%s'; options of a place, such as wait_timeout and those of reverse_proxy, belong to the directive", name, d.Val())
		}
		if err := readOption(&s, d, seen); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	if err := s.WithDefaults().Validate(); err != nil {
		return atToken(place).Errf("service %s: %v", name, err)
	}
	if before := a.Services[name]; before != nil {
		diff, err := before.Differs(s)
		if err != nil {
			return atToken(place).WrapErr(err)
		}
		if diff != "" {
			return atToken(place).Errf("service %s is defined twice in the global options, and not in the same way: the two differ in %s", name, diff)
		}
	}
	if a.Services == nil {
		a.Services = make(map[string]*hub.ServiceConfig)
	}
	a.Services[name] = &s
	return nil
}
