package hub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// hubs holds the one hub under one constant key: it is found by identity, not
// by the hash of a configuration, so a changed option cannot make a second
// one that has neither the line nor the processes.
var hubs = caddy.NewUsagePool()

const hubKey = "usher"

// Latest is for the admin API and the metrics, which must not keep a hub
// alive.
var Latest atomic.Pointer[Hub]

// retiring are the hubs that no configuration uses any more and that still
// finish what they have.
var retiring sync.Map

var registerOnExit = sync.OnceFunc(func() {
	caddy.OnExit(func(context.Context) {
		retiring.Range(func(h, _ any) bool {
			// It has logged what it could not do.
			_ = h.(*Hub).closeAll()
			return true
		})
	})
})

// Load returns the hub, and counts one user more.
func Load() (*Hub, error) {
	registerOnExit()
	v, _, err := hubs.LoadOrNew(hubKey, func() (caddy.Destructor, error) {
		h := newHub()
		Latest.Store(h)
		return h, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*Hub), nil
}

// Unload counts one user less.
func Unload() error {
	_, err := hubs.Delete(hubKey)
	return err
}

// What holds for the options of the app that are not given.
const (
	DefaultPortFrom        = 21000
	DefaultPortTo          = 25999
	DefaultStartLimit      = 8
	DefaultMaxWaitingInAll = 10000
)

// Holder is the app, for rooms that do not know it.
type Holder interface{ Hub() *Hub }

// Hub outlives configurations. It owns the services with their lines,
// reservations and running backends. A configuration is a generation: the
// newest one that is active is in force.
type Hub struct {
	budget       *control.Budget
	timers       control.Timers
	waiting      *reserver.Limit
	visitorLimit visitorLimit
	Activity     Activity
	emitter      emitter
	logs         *logSwitch
	local        atomic.Pointer[scaler.LocalOptions]
	exiting      atomic.Bool
	seal         atomic.Pointer[seal] // of cookies; nil until a service needs it
	memories     memories
	member       atomic.Pointer[membership] // in a cluster; nil without one
	tasks        atomic.Pointer[Tasks]      // nil until a configuration has stored requests
	keeper       atomic.Pointer[keeper]     // nil until services can be made while Caddy runs

	host *scaler.Host

	recoverOnce sync.Once
	background  sync.WaitGroup
	ctx         context.Context // of the background; ends when the hub does
	cancel      context.CancelFunc

	operating sync.Mutex // one suspension is written at a time

	attached sync.Map // what other rooms keep for the life of the hub, by their key

	mu          sync.Mutex
	services    map[string]*Service
	groups      map[string]*control.Group // by name; nil until one is used
	generations []*Generation             // active ones, oldest first

	splitWeights map[string]*setWeights // what was set at run time, by split; known for those that were in force
}

// Globals are the options that hold for all services.
type Globals struct {
	StartLimit int
	MaxWaiting int
	Local      scaler.LocalOptions
}

// Generation is one configuration, as far as it concerns the hub.
type Generation struct {
	Settings    Globals
	Logger      *zap.Logger
	Ctx         caddy.Context
	Events      *caddyevents.App
	Storage     certmagic.Storage
	Services    map[string]*Service
	Definitions map[string]*Definition
	Lacking     map[PageFile]struct{} // the files of waiting pages that it could not use
	Occasion    Occasion
	Cluster     *Cluster             // nil without one
	TaskStore   *TaskStore           // nil without stored requests
	Tasks       map[string]TaskPlace // where those of a service are executed
	Made        *MadeRules           // nil if no services can be made while Caddy runs
	Splits      map[string]*Split    // by name

	// made is true for the services of a registry, which come one by one: not all of
	// what is stored is listed for each of them.
	made bool
}

func newHub() *Hub {
	h := &Hub{
		budget:   control.NewBudget(DefaultStartLimit),
		waiting:  new(reserver.Limit),
		logs:     newLogSwitch(),
		services: make(map[string]*Service),

		splitWeights: make(map[string]*setWeights),
	}
	h.host = &scaler.Host{
		DataDir: dataDir(),
		Local:   func() scaler.LocalOptions { return *h.local.Load() },
		Cluster: func() string {
			if m := h.member.Load(); m != nil {
				return m.cluster.identifier()
			}
			return ""
		},
	}
	h.waiting.Set(DefaultMaxWaitingInAll)
	h.visitorLimit.max.Store(DefaultMaxWaitingInAll)
	h.local.Store(&scaler.LocalOptions{PortFrom: DefaultPortFrom, PortTo: DefaultPortTo})
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Attach returns what another room keeps beside the hub for the hub's whole
// life, under a key of its own; build makes it the first time. If it has a
// method Close, that is called when Caddy exits or the hub ends, maybe twice.
func (h *Hub) Attach(key any, build func() any) any {
	if v, ok := h.attached.Load(key); ok {
		return v
	}
	v, _ := h.attached.LoadOrStore(key, build())
	return v
}

// closeAttached closes what is attached.
func (h *Hub) closeAttached() {
	h.attached.Range(func(_, v any) bool {
		if c, ok := v.(interface{ Close() }); ok {
			c.Close()
		}
		return true
	})
}

// Acquire returns the service of that name, which is made if need be, and
// counts one generation more that uses it.
func (h *Hub) Acquire(name string) *Service {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.services[name]
	if s != nil && s.retired {
		if s.Loop.Unretire() {
			h.background.Done()
		} else {
			// It is past the point of no return: a new one takes its place.
			s = nil
		}
	}
	if s == nil {
		s = newService(h, name)
		h.services[name] = s
	}
	s.retired = false
	s.users++
	return s
}

// Activate puts g in force.
func (h *Hub) Activate(g *Generation) error {
	if err := h.activate(g); err != nil {
		return err
	}
	// Now that nothing can refuse the configuration any more.
	h.settleSplits()
	h.useMade(g)
	h.recoverOnce.Do(func() { h.recoverInstances(g) })
	if m := h.member.Load(); m != nil {
		return m.define()
	}
	return nil
}

func (h *Hub) activate(g *Generation) error {
	if err := h.openTasks(g); err != nil {
		return err
	}
	suspended, learned, weights := h.readSuspensions(g), h.readMemories(g), h.readSplits(g)
	notes := h.readNotes(g, suspended, weights)
	h.loadSeal(g)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applyGlobals(g)
	if err := h.applyCluster(g, notes); err != nil {
		if n := len(h.generations); n > 0 {
			h.applyGlobals(h.generations[n-1])
		}
		return err
	}
	if m := h.member.Load(); m != nil {
		suspended = m.suspensions(g)
	}
	h.applySuspensions(suspended)
	if err := h.applyServices(g); err != nil {
		// What was applied so far is undone.
		if n := len(h.generations); n > 0 {
			h.applyGlobals(h.generations[n-1])
			_ = h.applyServices(h.generations[n-1])
		}
		return err
	}
	h.applyMemories(g, learned)
	h.applySplits(g, weights)
	h.generations = append(h.generations, g)
	h.useTasks()
	return nil
}

// applyGlobals makes the settings of g that hold for all services those of
// what runs. The lock is held.
func (h *Hub) applyGlobals(g *Generation) {
	h.logs.use(g.Logger)
	h.emitter.use(g)
	h.budget.SetLimit(g.Settings.StartLimit)
	h.waiting.Set(g.Settings.MaxWaiting)
	h.visitorLimit.max.Store(int64(g.Settings.MaxWaiting))
	local := g.Settings.Local
	h.local.Store(&local)
}

// applyServices makes the definitions of g those of what runs. The lock is
// held.
func (h *Hub) applyServices(g *Generation) error {
	for name, d := range g.Definitions {
		if err := g.Services[name].apply(d, g.Occasion == Boot); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	return nil
}

// Deactivate takes g out of force, whether it was ever in force or not. What
// it had in force goes back to the newest of the others, service by service,
// and what none of them names is retired.
func (h *Hub) Deactivate(g *Generation) {
	h.saveLast(g)
	h.deactivate(g)
	h.mu.Lock()
	var newest *Generation
	if n := len(h.generations); n > 0 {
		newest = h.generations[n-1]
	}
	h.mu.Unlock()
	if !caddy.Exiting() {
		h.settleSplits()
		h.useMade(newest)
	}
}

func (h *Hub) deactivate(g *Generation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := slices.Index(h.generations, g); k >= 0 {
		h.generations = slices.Delete(h.generations, k, k+1)
		if k > 0 && k == len(h.generations) {
			h.applyGlobals(h.generations[k-1])
		}
		h.useTasks()
	}
	h.forgetSplits(g)
	for name, d := range g.Definitions {
		s := g.Services[name]
		if s.definition != d {
			continue
		}
		for _, before := range slices.Backward(h.generations) {
			if d, ok := before.Definitions[name]; ok {
				if err := s.apply(d, before.Occasion == Boot); err != nil {
					s.Log().Error("going back to the definition before failed: the service keeps what it had", zap.Error(err))
				}
				break
			}
		}
	}
	for _, s := range g.Services {
		if s.users--; s.users == 0 {
			h.retire(s)
		}
	}
}

// retire lets a service finish what it has, and forgets it then. The lock is
// held.
func (h *Hub) retire(s *Service) {
	if !s.active {
		// No configuration that names it was ever in force.
		s.Reserver.Refuse(&control.Refusal{Kind: control.RefusedExiting, Short: "the configuration was withdrawn"})
		h.forget(s)
		// It runs nothing, but may be about to try again what failed.
		h.background.Go(func() { _ = s.Loop.Close(h.ctx) })
		return
	}
	s.retired = true
	// No page of it can ask again.
	s.Visitors.clear()
	if caddy.Exiting() {
		// Destruct is next: it stops everything at once.
		return
	}
	s.Log().Info("no configuration has the service any more: it finishes what it has")
	h.background.Add(1)
	s.Loop.Retire(func() {
		defer h.background.Done()
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.retired {
			s.Log().Info("service gone")
			h.forget(s)
		}
	})
}

// forget takes s out of the hub. The lock is held.
func (h *Hub) forget(s *Service) {
	if h.services[s.Name] != s {
		return
	}
	delete(h.services, s.Name)
	if s.shared != nil {
		s.shared.unshare(s)
	}
	s.Outputs().Close()
	if latest := Latest.Load(); latest == nil || latest == h || latest.Service(s.Name) == nil {
		s.metrics.forget(s.Name)
	}
}

// Service returns the active service of that name, or nil.
func (h *Hub) Service(name string) *Service {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.services[name]; s != nil && s.active {
		return s
	}
	return nil
}

// All returns the active services, by name.
func (h *Hub) All() []*Service {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Service, 0, len(h.services))
	for _, s := range h.services {
		if s.active {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *Service) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

// storage returns the storage of the configuration in force.
func (h *Hub) storage() (certmagic.Storage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.generations); n > 0 {
		return h.generations[n-1].Storage, nil
	}
	return nil, errors.New("no configuration is in force")
}

// Exit answers all waiting requests: Caddy exits for good.
func (h *Hub) Exit() {
	if h.exiting.Swap(true) {
		return
	}
	if m := h.member.Load(); m != nil {
		m.leave()
	}
	h.endTasks()
	h.endMade()
	for _, s := range h.All() {
		s.Loop.Exit()
		s.Outputs().Close()
	}
	h.Activity.changed.end()
	h.closeAttached()
}

// Destruct ends the hub: no configuration uses it any more. If Caddy exits,
// local processes are stopped at once. If Usher was removed from the
// configuration, its services finish what they have, in the background.
func (h *Hub) Destruct() error {
	Latest.CompareAndSwap(h, nil)
	h.Activity.changed.end()
	h.emitter.use(nil)
	h.closeAttached()
	h.endMade()
	if caddy.Exiting() {
		return h.closeAll()
	}
	// The logging of the last configuration that had Usher is closed with it.
	h.logs.use(caddy.Log().Named("usher"))
	retiring.Store(h, true)
	go func() {
		h.background.Wait()
		h.closeTasks()
		if m := h.member.Load(); m != nil {
			m.close(h.ctx)
		}
		h.cancel()
		retiring.Delete(h)
	}()
	return nil
}

// closeGrace is what closing may take beyond the stop timeouts.
const closeGrace = 5 * time.Second

// closeAll closes all loops, with what they run.
func (h *Hub) closeAll() error {
	h.mu.Lock()
	var all []*Service
	longest := time.Duration(0)
	for _, s := range h.services {
		all = append(all, s)
		if s.definition != nil {
			longest = max(longest, time.Duration(*s.definition.Service.StopTimeout))
		}
	}
	h.services = make(map[string]*Service)
	h.mu.Unlock()
	h.closeTasks() // while the instances are there
	h.cancel()

	ctx, cancel := context.WithTimeout(context.Background(), longest+closeGrace)
	defer cancel()
	if m := h.member.Load(); m != nil {
		m.close(ctx)
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(all))
	for _, s := range all {
		wg.Go(func() { errs <- s.Loop.Close(ctx) })
	}
	wg.Wait()
	close(errs)
	var first error
	for err := range errs {
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

// dataDir is where backends keep what has to survive Caddy.
func dataDir() string { return filepath.Join(caddy.AppDataDir(), "usher") }

// recoverInstances lets every kind of backend end what an earlier Caddy left
// and no service has adopted.
func (h *Hub) recoverInstances(g *Generation) {
	for _, info := range caddy.GetModules("usher.backends") {
		r, ok := info.New().(scaler.Recoverer)
		if !ok {
			continue
		}
		backends := append(g.backendsOf(info.ID.Name()), h.madeBackends(info.ID.Name())...)
		left := scaler.Recovery{DataDir: h.host.DataDir, Backends: backends, Logger: slogTo(g.Logger)}
		h.background.Go(func() { r.Recover(h.ctx, left) })
	}
}

// backendsOf returns the backends of a type, in the order of their services.
func (g *Generation) backendsOf(kind string) []scaler.Backend {
	var all []scaler.Backend
	for _, name := range slices.Sorted(maps.Keys(g.Definitions)) {
		if d := g.Definitions[name]; d.BackendType() == kind {
			all = append(all, d.Backend)
		}
	}
	return all
}
