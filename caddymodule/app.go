package caddymodule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule((*App)(nil))
}

// App is Usher's app: the services that handlers refer to by name, and the
// options that hold for all of them. It does not need to be configured where
// handlers define their services themselves.
type App struct {
	// The services, by name. A handler can define a service as well, in
	// `define`; equal definitions may stand any number of times.
	Services map[string]*Service `json:"services,omitempty"`

	// The local ports for processes, as `<from>-<to>`, both included. They
	// should lie outside the range from which the system takes the ports of
	// outgoing connections. Default: `21000-25999`.
	Ports string `json:"ports,omitempty"`

	// How many starts may be in progress over all services. Default: 8.
	StartLimit int `json:"start_limit,omitempty"`

	// How many requests may wait over all services. Default: 10000.
	MaxWaiting *int `json:"max_waiting,omitempty"`

	// What becomes of local processes when Caddy exits for good: `stop`, or
	// `keep`, with which they live on, also when Caddy is killed. It is fixed
	// when a process starts. The next Caddy adopts what was kept, if it keeps
	// too and has the service with the same backend, and ends the rest.
	// Default: `stop`.
	OnExit string `json:"on_exit,omitempty"`

	backends   backendDefaults
	ctx        caddy.Context
	hub        *hub
	generation *generation
}

const (
	defaultPortFrom        = 21000
	defaultPortTo          = 25999
	defaultStartLimit      = 8
	defaultMaxWaitingInAll = 10000

	onExitStop = "stop"
	onExitKeep = "keep"
)

// CaddyModule returns the Caddy module information.
// It is asked for the origin of an event while another goroutine takes the
// configuration out of force, so it must not copy the app.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision builds and checks everything, without side effects.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	settings, err := a.settings()
	if err != nil {
		return err
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if a.hub, err = loadHub(); err != nil {
		return err
	}
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("the events app: %w", err)
	}
	a.generation = &generation{
		settings: settings, logger: ctx.Logger(), ctx: ctx, events: events.(*caddyevents.App), storage: ctx.Storage(),
		services: make(map[string]*service), definitions: make(map[string]*definition), draft: newDraft(),
	}
	for name, s := range a.Services {
		if err := a.define(ctx, name, s, "apps.usher.services."+name); err != nil {
			return err
		}
	}
	// Their provisioned form is kept, not this one.
	a.Services = nil
	return nil
}

func (a *App) settings() (globalSettings, error) {
	g := globalSettings{
		startLimit: defaultStartLimit, maxWaiting: defaultMaxWaitingInAll,
		local: scaler.LocalOptions{PortFrom: defaultPortFrom, PortTo: defaultPortTo},
	}
	if a.Ports != "" {
		from, to, err := parsePorts(a.Ports)
		if err != nil {
			return g, err
		}
		g.local.PortFrom, g.local.PortTo = from, to
	}
	if a.StartLimit < 0 {
		return g, fmt.Errorf("start_limit must be at least 1, not %d", a.StartLimit)
	}
	if a.StartLimit > 0 {
		g.startLimit = a.StartLimit
	}
	if a.MaxWaiting != nil {
		if *a.MaxWaiting < 0 {
			return g, fmt.Errorf("max_waiting cannot be negative, but is %d", *a.MaxWaiting)
		}
		g.maxWaiting = *a.MaxWaiting
	}
	switch a.OnExit {
	case "", onExitStop:
	case onExitKeep:
		g.local.Keep = true
	default:
		return g, fmt.Errorf("on_exit '%s' is unknown: use stop or keep", a.OnExit)
	}
	return g, nil
}

// parsePorts reads a range of ports.
func parsePorts(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(s, "-")
	from, err1 := strconv.Atoi(a)
	to, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || from < 1 || to > 65535 || from > to {
		return 0, 0, fmt.Errorf("ports '%s' is not a range of ports: write it as 21000-25999", s)
	}
	return from, to, nil
}

// define adds the definition of a service to the configuration. Several may
// say the same; place says where this one stands.
func (a *App) define(ctx caddy.Context, name string, s *Service, place string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("%s: %w", place, err)
	}
	if s == nil {
		return fmt.Errorf("service %s (%s): the definition is null", name, place)
	}
	filled := *s
	if len(s.BackendRaw) > 0 {
		var err error
		if filled.BackendRaw, err = a.backends.fill(s.BackendRaw); err != nil {
			return fmt.Errorf("service %s (%s): %w", name, place, err)
		}
	}
	d, err := newDefinition(ctx, filled, place, a.generation.draft.options)
	if err != nil {
		return fmt.Errorf("service %s (%s): %w", name, place, err)
	}
	if other, ok := a.generation.definitions[name]; ok {
		diff, err := d.differs(other)
		if err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
		if diff != "" {
			return fmt.Errorf("service %s is defined twice, and not in the same way: %s and %s differ in %s", name, other.place, place, diff)
		}
		return nil
	}
	a.generation.definitions[name] = d
	a.use(name, place)
	return nil
}

// use returns the service of that name. It may not run yet, nor be defined.
func (a *App) use(name, place string) *service {
	if s, ok := a.generation.services[name]; ok {
		return s
	}
	s := a.hub.acquire(name)
	a.generation.services[name] = s
	a.generation.draft.used[name] = place
	return s
}

// Start puts the configuration in force.
func (a *App) Start() error {
	var undefined []string
	for name := range a.generation.services {
		if _, ok := a.generation.definitions[name]; !ok {
			undefined = append(undefined, name)
		}
	}
	if len(undefined) > 0 {
		slices.Sort(undefined)
		return fmt.Errorf("nobody defines service %s, which %s uses: give it a backend there, or define it in the global options",
			undefined[0], a.generation.draft.used[undefined[0]])
	}
	a.generation.draft = newDraft()
	return a.hub.activate(a.generation)
}

// Stop answers those who wait if Caddy exits for good. On a reload it does
// nothing: the services live on in the hub.
func (a *App) Stop() error {
	if caddy.Exiting() {
		a.hub.exit()
	}
	return nil
}

// Cleanup takes the configuration out of force.
func (a *App) Cleanup() error {
	if a.hub == nil {
		return nil
	}
	if a.generation != nil {
		a.hub.deactivate(a.generation)
	}
	a.hub = nil
	return unloadHub()
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
