package hub

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/registrystore"
	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
)

// MadeRules are what a configuration says of services that are made while Caddy
// runs.
type MadeRules struct {
	registry.Rules

	// Given is the JSON that the rules, the templates and the shared options of the
	// backends come from. Equal rules leave what runs as it is.
	Given string

	// Fill adds the shared options of a backend to the JSON of one.
	Fill func(json.RawMessage) (json.RawMessage, error)

	// Discoverers find services on platforms, by name.
	Discoverers map[string]scaler.Discoverer
}

// keeper makes services of what the registry has, and takes them away again. It
// lives as long as the hub, from the first configuration with a registry on.
//
// What runs is changed by one goroutine at a time, which holds working. The lock
// of the hub is taken after it; the registry is asked to change something without
// it, because the registry tells of its changes while it makes them.
type keeper struct {
	hub      *Hub
	registry *registry.Registry
	storage  registry.Store
	names    madeIndex // services by name
	hosts    madeIndex // services by host
	derived  madeIndex // services that are derived from others, by madeService.key and by name

	ended  context.CancelFunc // of the background
	ending sync.WaitGroup

	working    sync.Mutex
	rules      *MadeRules // in force; nil without
	logger     *zap.Logger
	ctx        caddy.Context // of the configuration in force
	options    map[string]*Options
	made       map[string]*madeService    // by name, derived ones included
	varied     map[string]map[string]bool // the names of derived ones, by the services from which they are derived
	named      map[string]map[int]bool    // the revisions that splits name, by service
	loading    bool                       // the storage is being read for the first time
	unreadable map[string]string          // why stored services cannot be read, by name, as it was logged
	scratch    caddy.Context              // to provision modules with
	scratched  int                        // how often it was
	finding    map[string]*finding        // by the name of the discoverer
	telling    bool                       // the cluster is told soon
	tellCost   time.Duration              // how long that took last
}

// madeService is a service of the registry as it runs, or one that is derived from
// such a one: a variant with the params of requests, or a revision beside the one in
// force.
// Guarded by the keeper's working.
type madeService struct {
	name       string
	service    *Service
	record     *registry.Record // of a derived one: that of the service from which it is derived
	params     map[string]string
	variant    bool        // it is derived by params
	fixed      int         // the revision that it is derived by; 0 if it is not
	revision   int         // of the record that is in force
	from       [32]byte    // the hash of the JSON that the definition comes from
	definition *Definition // nil if it could not be made one
	trouble    error       // why not
	shadowed   bool        // the configuration has a service of that name
	found      *Made       // as requests find it; nil if they do not
	hosts      []string    // by which they can find it
	arrivals   uint64      // of requests, when it was looked at last
	used       time.Time
}

// Find returns the service of that name that was made while Caddy runs, or nil.
func (h *Hub) Find(name string) *Made {
	if k := h.keeper.Load(); k != nil {
		return k.names.find(name)
	}
	return nil
}

// FindHost returns the service that was made while Caddy runs for requests to that
// host, or nil.
func (h *Hub) FindHost(host string) *Made {
	if k := h.keeper.Load(); k != nil {
		return k.hosts.find(host)
	}
	return nil
}

// MadeKnown says whether it is known which services were made. It is not until
// they have been read from Caddy's storage.
func (h *Hub) MadeKnown() bool {
	k := h.keeper.Load()
	return k == nil || k.registry.Loaded()
}

// Registry returns the registry of services that are made while Caddy runs; nil if
// the configuration has none.
func (h *Hub) Registry() *registry.Registry {
	k := h.keeper.Load()
	if k == nil {
		return nil
	}
	k.working.Lock()
	defer k.working.Unlock()
	if k.rules == nil {
		return nil
	}
	return k.registry
}

// useMade puts what g says of services that are made while Caddy runs in force; g
// is nil if no configuration is. No lock is held.
func (h *Hub) useMade(g *Generation) {
	k := h.keeper.Load()
	if k == nil {
		if g == nil || g.Made == nil {
			return
		}
		k = newKeeper(h)
		h.keeper.Store(k)
	}
	k.use(g)
}

func newKeeper(h *Hub) *keeper {
	k := &keeper{
		hub: h, storage: registrystore.New(h.storage), options: make(map[string]*Options),
		made: make(map[string]*madeService), varied: make(map[string]map[string]bool), finding: make(map[string]*finding),
	}
	k.registry = registry.New(k.storage, k.changed)
	ctx, cancel := context.WithCancel(h.ctx)
	k.ended = cancel
	k.ending.Go(func() { k.run(ctx) })
	return k
}

// madeLook is how often the storage, and the Caddy that leads, is asked whether other
// Caddys have changed something, and madeSweep how often it is seen what is of use no
// longer.
const (
	madeLook  = 10 * time.Second
	madeSweep = 5 * time.Minute
)

// run keeps the registry in step with the storage.
func (k *keeper) run(ctx context.Context) {
	look := time.NewTicker(madeLook)
	defer look.Stop()
	sweep := time.NewTicker(madeSweep)
	defer sweep.Stop()
	var logged string
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			err := k.refresh(ctx)
			if err != nil && err.Error() != logged && ctx.Err() == nil {
				k.log().Warn("the storage does not tell what other Caddys have made of the services that are made at run time: this one goes on with what it knows", zap.Error(err))
			}
			logged = ""
			if err != nil {
				logged = err.Error()
			}
			if m := k.hub.member.Load(); m != nil && k.hub.Registry() != nil {
				m.compareMade(ctx)
			}
		case <-sweep.C:
			k.sweep(ctx)
		}
	}
}

// refresh reads what has changed in the storage; of services by name, if others
// have said that these have.
func (k *keeper) refresh(ctx context.Context, names ...string) error {
	k.working.Lock()
	off := k.rules == nil
	k.working.Unlock()
	if off {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, madeTimeout)
	defer cancel()
	if !k.registry.Loaded() {
		return k.load(ctx)
	}
	err := k.registry.Refresh(ctx, names...)
	k.sayUnreadable()
	return err
}

// sayUnreadable logs which stored services cannot be read, each once for a reason.
func (k *keeper) sayUnreadable() {
	now := make(map[string]string)
	for _, r := range k.registry.Rejected() {
		if r.Source == registry.SourceStorage {
			now[r.Name] = r.Reason
		}
	}
	k.working.Lock()
	said := k.unreadable
	k.unreadable = now
	k.working.Unlock()
	for name, reason := range now {
		if said[name] != reason {
			k.log().Error("a service that was made at run time is left as it is, and not served if it was not before: mend its record in the storage, or delete the service through the admin API",
				zap.String("service", name), zap.String("reason", reason))
		}
	}
}

// madeTimeout bounds reading all services from the storage.
const madeTimeout = time.Minute

// log returns the logger of the configuration in force.
func (k *keeper) log() *zap.Logger { return k.hub.logs.logger.Named("registry") }

// use puts what g says in force.
func (k *keeper) use(g *Generation) {
	k.working.Lock()
	if g == nil || g.Made == nil {
		k.rules, k.named = nil, nil
		for name := range k.made {
			k.remove(name)
		}
		k.working.Unlock()
		k.find(nil)
		return
	}
	again, missed := k.rules == nil || k.rules.Given != g.Made.Given, k.rules == nil
	k.rules, k.logger, k.ctx, k.scratch = g.Made, g.Logger.Named("registry"), g.Ctx, caddy.Context{}
	if again {
		clear(k.options)
	}
	rules := g.Made.Rules
	rules.Configured = k.configured
	rules.Check, rules.Mask, rules.Evict, rules.Unproven = k.check, k.mask, k.evict, k.unproven
	k.working.Unlock()
	k.registry.Use(rules)
	k.useRevisions()
	if !k.registry.Loaded() {
		if err := k.load(k.hub.ctx); err != nil {
			k.log().Error("the services that were made at run time cannot be read from the storage: their requests are refused until they can", zap.Error(err))
		}
	} else if missed {
		// Nothing was heard of changes while no configuration had a registry.
		if err := k.refresh(k.hub.ctx); err != nil {
			k.log().Warn("the storage does not tell what has changed meanwhile of the services that were made at run time", zap.Error(err))
		}
	}
	k.catchUp(again)
	k.find(g.Made.Discoverers)
	if m := k.hub.member.Load(); missed && m != nil {
		// Until now, what the others told was not heard.
		k.hub.background.Go(m.catchUpMade)
	}
}

// load reads all services from the storage, and lets them run together.
func (k *keeper) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, madeTimeout)
	defer cancel()
	k.setLoading(true)
	err := k.registry.Load(ctx)
	k.setLoading(false)
	k.sayUnreadable()
	k.catchUp(false)
	return err
}

func (k *keeper) setLoading(on bool) {
	k.working.Lock()
	k.loading = on
	k.working.Unlock()
}

// catchUp lets those services run as their records say that do not yet, or all of
// them.
func (k *keeper) catchUp(all bool) {
	k.working.Lock()
	defer k.working.Unlock()
	if k.rules == nil {
		return
	}
	var records []*registry.Record
	for _, r := range k.registry.List() {
		if m := k.made[r.Name]; m == nil || all || m.record != r || m.shadowed != k.configured(r.Name) || len(m.needs()) > 0 {
			records = append(records, r)
		}
	}
	if len(records) > 0 {
		k.define(records...)
	}
}

// needs are the services without which m does not start.
func (m *madeService) needs() []Need {
	if m.definition == nil {
		return nil
	}
	return m.definition.Service.Needs
}

// configured says whether the configuration in force has a service of that name.
func (k *keeper) configured(name string) bool { return k.hub.configures(name) != nil }

// configures returns the definition that the newest configuration that has one
// gives the service; nil if none has.
func (h *Hub) configures(name string) *Definition {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.configuresLocked(name)
}

func (h *Hub) configuresLocked(name string) *Definition {
	for _, g := range slices.Backward(h.generations) {
		if d, ok := g.Definitions[name]; ok {
			return d
		}
	}
	return nil
}

// isActive says whether some definition of s was in force.
func (s *Service) isActive() bool {
	s.Hub.mu.Lock()
	defer s.Hub.mu.Unlock()
	return s.active
}

// publish lets m be found by requests, or not, as it stands now. hosts are those of
// its definition. The lock is held.
func (k *keeper) publish(m *madeService, hosts []string) {
	var found *Made
	if m.definition != nil && !m.shadowed {
		found = &Made{Service: m.service, revision: m.revision}
		if !m.derived() {
			found.RequestParams = k.requestParams(m.record)
		}
	} else if m.trouble != nil && !m.shadowed {
		found = &Made{Trouble: m.trouble}
	} else {
		hosts = nil
	}
	if m.derived() {
		k.derived.set(m.key(), found)
		k.derived.set(m.name, found)
		return
	}
	m.found = found
	k.names.set(m.name, found)
	before := m.hosts
	m.hosts = hosts
	for _, host := range slices.Concat(before, hosts) {
		k.lead(host)
	}
}

// lead lets a host lead to the service that has it. The lock is held.
func (k *keeper) lead(host string) {
	if m := k.made[k.registry.ByHost(host)]; m != nil && slices.Contains(m.hosts, host) {
		k.hosts.set(host, m.found)
		return
	}
	k.hosts.set(host, nil)
}

// remove takes a service away. What it has, it finishes. The lock is held.
func (k *keeper) remove(name string) {
	m := k.made[name]
	if m == nil {
		return
	}
	delete(k.made, name)
	if m.derived() {
		k.derived.set(m.key(), nil)
		k.derived.set(m.name, nil)
		delete(k.varied[m.record.Name], name)
		if m.variant {
			k.registry.DropVariant(name)
		}
	} else {
		k.names.set(name, nil)
		for _, host := range m.hosts {
			k.lead(host)
		}
		for derived := range k.varied[name] {
			k.remove(derived)
		}
		delete(k.varied, name)
	}
	if s := m.service; s != nil {
		k.hub.mu.Lock()
		if s.users--; s.users == 0 {
			k.hub.retire(s)
		}
		k.hub.mu.Unlock()
	}
	if m.definition != nil {
		cleanUp(m.definition)
	}
	k.tellCluster()
}

// endMade lets nothing more be made. What was made runs on.
func (h *Hub) endMade() {
	k := h.keeper.Load()
	if k == nil {
		return
	}
	k.ended()
	k.working.Lock()
	var ending []*finding
	for name, f := range k.finding {
		ending = append(ending, f)
		delete(k.finding, name)
	}
	k.working.Unlock()
	for _, f := range ending {
		if f.discovery != nil {
			f.discovery.Close()
		}
	}
	k.ending.Wait()
}

// madeBackends returns the backends of a type of what was made while Caddy runs, in
// the order of the services.
func (h *Hub) madeBackends(kind string) (all []scaler.Backend) {
	k := h.keeper.Load()
	if k == nil {
		return nil
	}
	k.working.Lock()
	defer k.working.Unlock()
	for _, name := range slices.Sorted(maps.Keys(k.made)) {
		if d := k.made[name].definition; d != nil && d.BackendType() == kind {
			all = append(all, d.Backend)
		}
	}
	return all
}
