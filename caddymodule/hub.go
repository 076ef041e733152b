package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// hubs holds the one hub under one constant key: it is found by identity, not
// by the hash of a configuration, so a changed option cannot make a second
// one that has neither the line nor the processes.
var hubs = caddy.NewUsagePool()

const hubKey = "usher"

// latestHub is for the admin API and the metrics, which must not keep a hub
// alive.
var latestHub atomic.Pointer[hub]

// retiring are the hubs that no configuration uses any more and that still
// finish what they have.
var retiring sync.Map

var registerOnExit = sync.OnceFunc(func() {
	caddy.OnExit(func(context.Context) {
		retiring.Range(func(h, _ any) bool {
			// It has logged what it could not do.
			_ = h.(*hub).closeAll()
			return true
		})
	})
})

// loadHub returns the hub, and counts one user more.
func loadHub() (*hub, error) {
	registerOnExit()
	v, _, err := hubs.LoadOrNew(hubKey, func() (caddy.Destructor, error) {
		h := newHub()
		latestHub.Store(h)
		return h, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*hub), nil
}

// unloadHub counts one user less.
func unloadHub() error {
	_, err := hubs.Delete(hubKey)
	return err
}

// hub outlives configurations. It owns the services with their lines,
// reservations and running backends. A configuration is a generation: the
// newest one that is active is in force.
type hub struct {
	budget   *scaler.Budget
	waiting  *reserver.Limit
	visitors visitorLimit
	held     atomic.Int64 // bytes of request bodies that were read while waiting
	events   *bus
	emitter  emitter
	logs     *logSwitch
	local    atomic.Pointer[scaler.LocalOptions]
	exiting  atomic.Bool

	host *scaler.Host

	news news // over all services
	feed *feed

	recoverOnce sync.Once
	background  sync.WaitGroup
	ctx         context.Context // of the background; ends when the hub does
	cancel      context.CancelFunc

	operating sync.Mutex // one suspension is written at a time

	mu          sync.Mutex
	services    map[string]*service
	generations []*generation // active ones, oldest first
}

// globalSettings are the options that hold for all services.
type globalSettings struct {
	startLimit int
	maxWaiting int
	local      scaler.LocalOptions
}

// generation is one configuration, as far as it concerns the hub.
type generation struct {
	settings    globalSettings
	logger      *zap.Logger
	ctx         caddy.Context
	events      *caddyevents.App
	storage     certmagic.Storage
	services    map[string]*service
	definitions map[string]*definition
	draft       draft

	// silentDials is true if the transport of some proxy does not tell of the
	// connections that it makes.
	silentDials bool
}

// draft is what is of use only while a configuration is provisioned.
type draft struct {
	used    map[string]string   // where each service was named first
	options map[string]*options // by the JSON that gives them
	servers map[*caddyhttp.Server]*serverPlace
}

func newDraft() draft {
	return draft{
		used: make(map[string]string), options: make(map[string]*options),
		servers: make(map[*caddyhttp.Server]*serverPlace),
	}
}

func newHub() *hub {
	h := &hub{
		budget:   scaler.NewBudget(defaultStartLimit),
		waiting:  new(reserver.Limit),
		events:   newBus(),
		logs:     newLogSwitch(),
		services: make(map[string]*service),
	}
	h.host = &scaler.Host{DataDir: dataDir(), Local: func() scaler.LocalOptions { return *h.local.Load() }}
	h.feed = newFeed(h)
	h.waiting.Set(defaultMaxWaitingInAll)
	h.visitors.max.Store(defaultMaxWaitingInAll)
	h.local.Store(&scaler.LocalOptions{PortFrom: defaultPortFrom, PortTo: defaultPortTo})
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// acquire returns the service of that name, which is made if need be, and
// counts one generation more that uses it.
func (h *hub) acquire(name string) *service {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.services[name]
	if s != nil && s.retired {
		if s.loop.Unretire() {
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

// activate puts g in force.
func (h *hub) activate(g *generation) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.apply(g); err != nil {
		// What was applied so far is undone.
		if n := len(h.generations); n > 0 {
			_ = h.apply(h.generations[n-1])
		}
		return err
	}
	h.generations = append(h.generations, g)
	h.recoverOnce.Do(func() { h.recoverInstances(g.logger) })
	return nil
}

// applyGlobals makes the settings of g that hold for all services those of
// what runs. The lock is held.
func (h *hub) applyGlobals(g *generation) {
	h.logs.use(g.logger)
	h.emitter.use(g)
	h.budget.SetLimit(g.settings.startLimit)
	h.waiting.Set(g.settings.maxWaiting)
	h.visitors.max.Store(int64(g.settings.maxWaiting))
	local := g.settings.local
	h.local.Store(&local)
}

// apply makes the settings of g those of what runs. The lock is held.
func (h *hub) apply(g *generation) error {
	h.applyGlobals(g)
	h.readSuspensions(g)
	for name, d := range g.definitions {
		if err := g.services[name].apply(d); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	return nil
}

// deactivate takes g out of force, whether it was ever in force or not. What
// it had in force goes back to the newest of the others, service by service,
// and what none of them names is retired.
func (h *hub) deactivate(g *generation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := slices.Index(h.generations, g); k >= 0 {
		h.generations = slices.Delete(h.generations, k, k+1)
		if k > 0 && k == len(h.generations) {
			h.applyGlobals(h.generations[k-1])
		}
	}
	for name, d := range g.definitions {
		s := g.services[name]
		if s.definition != d {
			continue
		}
		for _, before := range slices.Backward(h.generations) {
			if d, ok := before.definitions[name]; ok {
				if err := s.apply(d); err != nil {
					s.log().Error("going back to the definition before failed: the service keeps what it had", zap.Error(err))
				}
				break
			}
		}
	}
	for _, s := range g.services {
		if s.users--; s.users == 0 {
			h.retire(s)
		}
	}
}

// retire lets a service finish what it has, and forgets it then. The lock is
// held.
func (h *hub) retire(s *service) {
	if !s.active {
		// No configuration that names it was ever in force.
		s.reserver.Refuse(&scaler.Refusal{Kind: scaler.RefusedExiting, Short: "the configuration was withdrawn"})
		h.forget(s)
		// It runs nothing, but may be about to try again what failed.
		h.background.Go(func() { _ = s.loop.Close(h.ctx) })
		return
	}
	s.retired = true
	// No page of it can ask again.
	s.visitors.clear()
	if caddy.Exiting() {
		// Destruct is next: it stops everything at once.
		return
	}
	s.log().Info("no configuration has the service any more: it finishes what it has")
	h.background.Add(1)
	s.loop.Retire(func() {
		defer h.background.Done()
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.retired {
			s.log().Info("service gone")
			h.forget(s)
		}
	})
}

func (h *hub) forget(s *service) {
	if h.services[s.name] != s {
		return
	}
	delete(h.services, s.name)
	if latest := latestHub.Load(); latest == nil || latest == h || latest.service(s.name) == nil {
		s.metrics.forget(s.name)
	}
}

// service returns the active service of that name, or nil.
func (h *hub) service(name string) *service {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.services[name]; s != nil && s.active {
		return s
	}
	return nil
}

// all returns the active services, by name.
func (h *hub) all() []*service {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*service, 0, len(h.services))
	for _, s := range h.services {
		if s.active {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *service) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return all
}

// storage returns the storage of the configuration in force.
func (h *hub) storage() (certmagic.Storage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.generations); n > 0 {
		return h.generations[n-1].storage, nil
	}
	return nil, errors.New("no configuration is in force")
}

// exit answers everybody who waits: Caddy exits for good.
func (h *hub) exit() {
	if h.exiting.Swap(true) {
		return
	}
	for _, s := range h.all() {
		s.loop.Exit()
	}
	h.events.close()
	h.feed.close()
}

// Destruct ends the hub: no configuration uses it any more. If Caddy exits,
// local processes are stopped at once. If Usher was removed from the
// configuration, its services finish what they have, in the background.
func (h *hub) Destruct() error {
	latestHub.CompareAndSwap(h, nil)
	h.events.close()
	h.emitter.use(nil)
	h.feed.close()
	if caddy.Exiting() {
		return h.closeAll()
	}
	// The logging of the last configuration that had Usher is closed with it.
	h.logs.use(caddy.Log().Named("usher"))
	retiring.Store(h, true)
	go func() {
		h.background.Wait()
		h.cancel()
		retiring.Delete(h)
	}()
	return nil
}

// closeGrace is what closing may take beyond the stop timeouts.
const closeGrace = 5 * time.Second

// closeAll closes all loops, with what they run.
func (h *hub) closeAll() error {
	h.mu.Lock()
	var all []*service
	longest := time.Duration(0)
	for _, s := range h.services {
		all = append(all, s)
		if s.definition != nil {
			longest = max(longest, time.Duration(*s.definition.service.StopTimeout))
		}
	}
	h.services = make(map[string]*service)
	h.mu.Unlock()
	h.cancel()

	ctx, cancel := context.WithTimeout(context.Background(), longest+closeGrace)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, len(all))
	for _, s := range all {
		wg.Go(func() { errs <- s.loop.Close(ctx) })
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
// and no service has adopted. The lock is held.
func (h *hub) recoverInstances(logger *zap.Logger) {
	for _, info := range caddy.GetModules("usher.backends") {
		r, ok := info.New().(scaler.Recoverer)
		if !ok {
			continue
		}
		h.background.Go(func() { r.Recover(h.ctx, h.host.DataDir, logger) })
	}
}
