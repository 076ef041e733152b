package caddymodule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
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
	Services map[string]*hub.ServiceConfig `json:"services,omitempty"`

	// The local ports for processes, as `<from>-<to>`, both included. They
	// should lie outside the range from which the system takes the ports of
	// outgoing connections. A port that an instance had rests for three minutes;
	// if all free ports rest, the one that has rested longest is taken. So give
	// several times as many ports as there are instances. Default: `21000-25999`.
	Ports string `json:"ports,omitempty"`

	// How many starts of processes may be in progress over all services, and
	// as many on each remote platform. A process gives its place back when it is
	// ready or has failed, when no request waits for it any more, and after 5s
	// in any case. Default: 8.
	StartLimit int `json:"start_limit,omitempty"`

	// How many requests may wait over all services. Default: 10000.
	MaxWaiting *int `json:"max_waiting,omitempty"`

	// What becomes of local processes when Caddy exits for good: `stop`, or
	// `keep`, with which they live on, also when Caddy is killed. It is fixed
	// when a process starts. The next Caddy adopts what was kept, if it keeps
	// too and has the service with the same backend, and ends the rest.
	// Default: `stop`.
	OnExit string `json:"on_exit,omitempty"`

	// The cluster of Caddys in which this one shares the instances of its services
	// on platforms that all of them see. Default: none.
	Cluster *hub.ClusterConfig `json:"cluster,omitempty"`

	// What services may be made of while Caddy runs, by name. Default: nothing.
	Templates map[string]*Template `json:"templates,omitempty"`

	// Which services may be made while Caddy runs, and by which means. Default:
	// none.
	Registry *Registry `json:"registry,omitempty"`

	backends   backendDefaults
	ctx        caddy.Context
	hub        *hub.Hub
	generation *hub.Generation
	draft      draft
}

// draft is what is of use only while a configuration is provisioned.
type draft struct {
	used    map[string]string       // where each service was named first
	options map[string]*hub.Options // by the JSON that gives them
	// addresses are those that only one service can have, and which it is.
	addresses map[string]string
	servers   map[*caddyhttp.Server]*serverShared
	// ordered are the handlers that order the queue of their service.
	ordered []*Handler
}

func newDraft() draft {
	return draft{
		used: make(map[string]string), options: make(map[string]*hub.Options), addresses: make(map[string]string),
		servers: make(map[*caddyhttp.Server]*serverShared),
	}
}

const (
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
	if err := hub.RegisterMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if a.hub, err = hub.Load(); err != nil {
		return err
	}
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("the events app: %w", err)
	}
	a.generation = &hub.Generation{
		Settings: settings, Logger: ctx.Logger(), Ctx: ctx, Events: events.(*caddyevents.App), Storage: ctx.Storage(),
		Services: make(map[string]*hub.Service), Definitions: make(map[string]*hub.Definition), Lacking: make(map[hub.PageFile]struct{}),
		Occasion: a.hub.Occasion(),
	}
	if a.Cluster != nil {
		if a.generation.Cluster, err = hub.NewCluster(ctx, *a.Cluster); err != nil {
			return err
		}
		a.Cluster = nil
	}
	a.draft = newDraft()
	for name, s := range a.Services {
		if err := a.define(ctx, name, s, "apps.usher.services."+name); err != nil {
			return err
		}
	}
	// Their provisioned form is kept, not this one.
	a.Services = nil
	return a.provisionRegistry(ctx)
}

// Hub returns what outlives the configuration.
func (a *App) Hub() *hub.Hub { return a.hub }

func (a *App) settings() (hub.Globals, error) {
	g := hub.Globals{
		StartLimit: hub.DefaultStartLimit, MaxWaiting: hub.DefaultMaxWaitingInAll,
		Local: scaler.LocalOptions{PortFrom: hub.DefaultPortFrom, PortTo: hub.DefaultPortTo},
	}
	if a.Ports != "" {
		from, to, err := parsePorts(a.Ports)
		if err != nil {
			return g, err
		}
		g.Local.PortFrom, g.Local.PortTo = from, to
	}
	if a.StartLimit < 0 {
		return g, fmt.Errorf("start_limit must be at least 1, not %d", a.StartLimit)
	}
	if a.StartLimit > hub.MaxStartLimit {
		return g, fmt.Errorf("start_limit is %d, but can be at most %d", a.StartLimit, hub.MaxStartLimit)
	}
	if a.StartLimit > 0 {
		g.StartLimit = a.StartLimit
	}
	if a.MaxWaiting != nil {
		if *a.MaxWaiting < 0 {
			return g, fmt.Errorf("max_waiting cannot be negative, but is %d", *a.MaxWaiting)
		}
		if err := hub.CheckCount("max_waiting", *a.MaxWaiting, 0, scaler.MaxWaiting); err != nil {
			return g, err
		}
		g.MaxWaiting = *a.MaxWaiting
	}
	switch a.OnExit {
	case "", onExitStop:
	case onExitKeep:
		g.Local.Keep = true
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
func (a *App) define(ctx caddy.Context, name string, s *hub.ServiceConfig, place string) error {
	if err := hub.CheckName(name); err != nil {
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
	d, err := hub.NewDefinition(ctx, filled, place, a.draft.options)
	if err != nil {
		return fmt.Errorf("service %s (%s): %w", name, place, err)
	}
	if other, ok := a.generation.Definitions[name]; ok {
		diff, err := d.Differs(other)
		if err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
		if diff != "" {
			return fmt.Errorf("service %s is defined twice, and not in the same way: %s and %s differ in %s", name, other.Place, place, diff)
		}
		return nil
	}
	if err := a.checkFixedAddress(name, d); err != nil {
		return fmt.Errorf("service %s (%s): %w", name, place, err)
	}
	if err := a.checkMissing(name, d); err != nil {
		return err
	}
	a.generation.Definitions[name] = d
	a.use(name, place)
	for _, n := range d.Service.Needs {
		a.use(n.Service, "a need of service "+name)
	}
	return nil
}

// checkFixedAddress refuses what could never work: more than one instance, or
// more than one service, for an address that only one can have.
func (a *App) checkFixedAddress(name string, d *hub.Definition) error {
	backend, ok := d.Backend.(scaler.FixedAddresser)
	if !ok {
		return nil
	}
	address := backend.FixedAddress()
	if address == "" {
		return nil
	}
	if most := d.Service.Instances.Max; most > 1 {
		return fmt.Errorf("instances allows %d, but all of them would listen on %s, where only one can: allow 1, or leave out the address, if the program can listen on the port that Usher gives it", most, address)
	}
	if d.Service.Overlap == hub.OverlapNames[control.OverlapOn] {
		return fmt.Errorf("overlap is on, but a new instance cannot listen on %s before the old one has ended: leave out overlap, or the address", address)
	}
	if other, ok := a.draft.addresses[address]; ok {
		return fmt.Errorf("it listens on %s, as service %s does, and only one of them can: give one of the programs another port", address, other)
	}
	a.draft.addresses[address] = name
	return nil
}

// use returns the service of that name. It may not run yet, nor be defined.
func (a *App) use(name, place string) *hub.Service {
	if s, ok := a.generation.Services[name]; ok {
		return s
	}
	s := a.hub.Acquire(name)
	a.generation.Services[name] = s
	a.draft.used[name] = place
	return s
}

// Start puts the configuration in force.
func (a *App) Start() error {
	var undefined []string
	for name := range a.generation.Services {
		if _, ok := a.generation.Definitions[name]; !ok {
			undefined = append(undefined, name)
		}
	}
	if len(undefined) > 0 {
		slices.Sort(undefined)
		return fmt.Errorf("service %s is not defined, but %s uses it: give it a backend there, or define it in the global options",
			undefined[0], a.draft.used[undefined[0]])
	}
	if err := a.checkFastCGI(); err != nil {
		return err
	}
	if err := hub.CheckNeeds(a.generation.Definitions); err != nil {
		return err
	}
	if err := hub.CheckSplits(a.generation); err != nil {
		return err
	}
	for _, h := range a.draft.ordered {
		for _, name := range h.services() {
			if err := h.checkQueue(a.generation.Definitions[name]); err != nil {
				return fmt.Errorf("service %s (%s): %w", name, h.shared.name, err)
			}
		}
	}
	a.draft = newDraft()
	return a.hub.Activate(a.generation)
}

// Stop answers waiting requests if Caddy exits for good. On a reload it does
// nothing: the services live on in the hub.
func (a *App) Stop() error {
	if caddy.Exiting() {
		a.hub.Exit()
	}
	return nil
}

// Cleanup takes the configuration out of force.
func (a *App) Cleanup() error {
	if a.hub == nil {
		return nil
	}
	if a.generation != nil {
		a.hub.Deactivate(a.generation)
	}
	a.hub = nil
	return hub.Unload()
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
