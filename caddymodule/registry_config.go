package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
)

// Template is what services may be made of while Caddy runs. An operator writes it;
// those who make a service of it give values for its params, and nothing else.
type Template struct {
	// The definition of the services. In the description of the backend,
	// `{param.<name>}` stands for the value of a param, where the backend takes
	// params: never in what chooses a program, an image, a user or a file.
	Service *hub.ServiceConfig `json:"service,omitempty"`

	// The params, by name.
	Params map[string]registry.Param `json:"params,omitempty"`

	// How many services may be made of the template, with those that the params of
	// requests make. Further ones are refused. Default: no limit; a param that may
	// come with a request needs one.
	MaxServices int `json:"max_services,omitempty"`
}

// Registry says which services may be made while Caddy runs, and by which means.
// What it makes is kept in Caddy's storage.
type Registry struct {
	// The templates of which services may be made. Default: none.
	AllowTemplates []string `json:"allow_templates,omitempty"`

	// The backends that whole definitions may have. Whole definitions come through
	// the admin API alone. Default: none.
	AllowBackends []string `json:"allow_backends,omitempty"`

	// The hosts that services may claim: names, or `*.` and a name for all hosts
	// below it. Default: any.
	AllowHosts []string `json:"allow_hosts,omitempty"`

	// How many services one owner may have. Default: no limit.
	OwnerLimit int `json:"owner_limit,omitempty"`

	// After how long without a request a service is deleted. Default: never.
	Forget caddy.Duration `json:"forget,omitempty"`

	// How many revisions of a service are kept, from 1 to 100. Default: 10.
	KeepRevisions int `json:"keep_revisions,omitempty"`

	// The platforms on which services are found by their labels or annotations.
	// Default: none.
	DiscoverRaw map[string]json.RawMessage `json:"discover,omitempty" caddy:"namespace=usher.discovery"`
}

const (
	defaultKeepRevisions = 10
	mostKeepRevisions    = 100
	mostServices         = 1_000_000
)

func (r *Registry) validate() error {
	if err := hub.CheckCount("owner_limit", r.OwnerLimit, 0, mostServices); err != nil {
		return err
	}
	if r.Forget < 0 {
		return fmt.Errorf("forget must be positive, not %v", time.Duration(r.Forget))
	}
	if r.KeepRevisions != 0 {
		if err := hub.CheckCount("keep_revisions", r.KeepRevisions, 1, mostKeepRevisions); err != nil {
			return err
		}
	}
	if len(r.AllowTemplates)+len(r.AllowBackends)+len(r.DiscoverRaw) == 0 {
		return errors.New("it lets nothing be made: allow a template or a backend, or discover services on a platform")
	}
	for _, name := range r.AllowBackends {
		if !isBackend(name) {
			return fmt.Errorf("there is no backend '%s' to allow", name)
		}
	}
	return nil
}

// provisionRegistry checks what may be made while Caddy runs.
func (a *App) provisionRegistry(ctx caddy.Context) error {
	if a.Registry == nil {
		if len(a.Templates) > 0 {
			return fmt.Errorf("template %s is of no use without a registry: add one, and allow the template there", slices.Sorted(maps.Keys(a.Templates))[0])
		}
		return nil
	}
	if err := a.Registry.validate(); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	given, err := json.Marshal([]any{a.Templates, a.Registry, a.backends})
	if err != nil {
		return err
	}
	made := &hub.MadeRules{Given: string(given), Fill: a.backends.fill, Discoverers: make(map[string]scaler.Discoverer)}
	made.Rules = registry.Rules{
		Templates: make(map[string]*registry.Template), AllowTemplates: a.Registry.AllowTemplates, AllowBackends: a.Registry.AllowBackends,
		Hosts: a.Registry.AllowHosts, OwnerLimit: a.Registry.OwnerLimit, Forget: time.Duration(a.Registry.Forget), KeepRevisions: a.Registry.KeepRevisions,
	}
	if made.KeepRevisions == 0 {
		made.KeepRevisions = defaultKeepRevisions
	}
	for _, name := range slices.Sorted(maps.Keys(a.Templates)) {
		t, err := a.newTemplate(a.Templates[name])
		if err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
		made.Templates[name] = t
	}
	for _, name := range a.Registry.AllowTemplates {
		if made.Templates[name] == nil {
			return fmt.Errorf("registry: there is no template '%s' to allow", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Registry.DiscoverRaw)) {
		if made.Discoverers[name], err = a.loadDiscoverer(ctx, name); err != nil {
			return fmt.Errorf("registry: discover %s: %w", name, err)
		}
	}
	a.generation.Made = made
	// Their provisioned form is kept, not this one.
	a.Templates, a.Registry = nil, nil
	return nil
}

func (a *App) newTemplate(t *Template) (*registry.Template, error) {
	if t == nil || t.Service == nil || len(t.Service.BackendRaw) == 0 {
		return nil, errors.New("it has no backend: say what runs the instances of its services")
	}
	if err := hub.CheckCount("max_services", t.MaxServices, 0, mostServices); err != nil {
		return nil, err
	}
	if err := t.Service.WithDefaults().Validate(); err != nil {
		return nil, err
	}
	takes, err := takesParams(t.Service.BackendRaw)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(t.Service)
	if err != nil {
		return nil, err
	}
	return registry.NewTemplate(raw, t.Params, takes, t.MaxServices)
}

// takesParams returns what says where a description of a backend may have params.
func takesParams(raw json.RawMessage) (func(path ...string) bool, error) {
	name := hub.InlineKey(raw, "type")
	info, err := caddy.GetModule("usher.backends." + name)
	if err != nil {
		return nil, fmt.Errorf("there is no backend '%s'", name)
	}
	mod := info.New()
	taker, ok := mod.(scaler.ParamTaker)
	if !ok {
		return func(...string) bool { return false }, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	delete(fields, "type")
	own, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	if err := caddy.StrictUnmarshalJSON(own, mod); err != nil {
		return nil, fmt.Errorf("backend %s: %w", name, err)
	}
	return taker.TakesParam, nil
}

// sharedDefaultsMerger is a discoverer that takes the shared options of its
// platform's backend.
type sharedDefaultsMerger interface{ MergeDefaults(shared any) }

// loadDiscoverer loads the module that finds services on a platform, with the
// options that services of that platform share.
func (a *App) loadDiscoverer(ctx caddy.Context, name string) (scaler.Discoverer, error) {
	raw := a.Registry.DiscoverRaw[name]
	info, err := caddy.GetModule("usher.discovery." + name)
	if err != nil {
		return nil, err
	}
	if shared, ok := a.backends[name]; ok {
		own := info.New()
		if m, ok := own.(sharedDefaultsMerger); ok {
			backend, err := caddy.GetModule("usher.backends." + name)
			if err != nil {
				return nil, err
			}
			with := backend.New()
			if err := caddy.StrictUnmarshalJSON(shared, with); err != nil {
				return nil, fmt.Errorf("the shared options of the backend %s: %w", name, err)
			}
			if len(raw) > 0 {
				if err := caddy.StrictUnmarshalJSON(raw, own); err != nil {
					return nil, err
				}
			}
			m.MergeDefaults(with)
			if raw, err = json.Marshal(own); err != nil {
				return nil, err
			}
		}
	}
	mod, err := ctx.LoadModuleByID("usher.discovery."+name, raw)
	if err != nil {
		return nil, err
	}
	d, ok := mod.(scaler.Discoverer)
	if !ok {
		return nil, fmt.Errorf("the module usher.discovery.%s is a %T, which discovers nothing", name, mod)
	}
	return d, nil
}
