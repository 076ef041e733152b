package hub

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/registrystore"
	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
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

	working   sync.Mutex
	rules     *MadeRules // in force; nil without
	logger    *zap.Logger
	ctx       caddy.Context // of the configuration in force
	options   map[string]*Options
	made      map[string]*madeService    // by name, derived ones included
	varied    map[string]map[string]bool // the names of derived ones, by the services from which they are derived
	named     map[string]map[int]bool    // the revisions that splits name, by service
	loading   bool                       // the storage is being read for the first time
	scratch   caddy.Context              // to provision modules with
	scratched int                        // how often it was
	finding   map[string]*finding        // by the name of the discoverer
	telling   bool                       // the cluster is told soon
	tellCost  time.Duration              // how long that took last
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
	return k.registry.Refresh(ctx, names...)
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

// changed does what the registry has decided. It is called for one change after
// the other.
func (k *keeper) changed(before, now *registry.Record) {
	k.working.Lock()
	defer k.working.Unlock()
	switch {
	case k.rules == nil, k.loading && before == nil:
		// catchUp does it.
	case now == nil || !now.Deleted.IsZero():
		k.remove(before.Name)
	default:
		k.define(now)
	}
}

// step is what becomes of one service while several are defined together.
type step struct {
	m          *madeService
	raw        json.RawMessage
	err        error // why raw is none
	before     *registry.Record
	definition *Definition // nil if nothing changes
	from       [32]byte
}

// define lets services run as their records say. The lock is held.
func (k *keeper) define(records ...*registry.Record) {
	var steps []*step
	for _, r := range records {
		m := k.made[r.Name]
		if m == nil {
			m = &madeService{name: r.Name}
			k.made[r.Name] = m
		}
		st := &step{m: m, before: m.record}
		m.record = r
		st.raw, st.err = k.registry.Resolve(&r.InForce().Definition)
		steps = append(steps, st)
	}
	k.apply(steps)
	for _, st := range steps {
		r := st.m.record
		st.m.revision = r.InForce().Number
		k.publish(st.m, r.InForce().Definition.Hosts)
	}
	if len(k.varied) > 0 {
		for _, r := range records {
			k.redefine(r)
		}
	}
	for _, r := range records {
		if k.named[r.Name] != nil {
			k.makeRevisions(r.Name)
		}
	}
	k.tellCluster()
}

// redefine lets what is derived from a service follow it. The lock is held.
func (k *keeper) redefine(r *registry.Record) {
	for name := range k.varied[r.Name] {
		v := k.made[name]
		if v.fixed > 0 {
			continue
		}
		before := v.record
		v.record = r
		now, raw, err := k.registry.VariantIfRoom(r.Name, v.params)
		if err != nil || now != name {
			// The template has other params now.
			k.remove(name)
			continue
		}
		k.apply([]*step{{m: v, raw: raw, before: before}})
		v.revision = r.InForce().Number
		k.publish(v, nil)
	}
}

// apply makes the definitions of services those of what runs, where they can be
// made. What a service had before stays otherwise. The lock is held.
func (k *keeper) apply(steps []*step) {
	fresh := make(map[string]*Definition)
	for _, st := range steps {
		m := st.m
		shadowed := k.configured(m.name)
		st.err = k.prepare(st, shadowed)
		m.shadowed = shadowed
		if st.definition == nil {
			continue
		}
		if m.service == nil {
			m.service = k.hub.Acquire(m.name)
		}
		if !m.service.isActive() {
			fresh[m.name] = st.definition
		}
	}
	k.recall(fresh)
	for _, st := range steps {
		m := st.m
		if st.err == nil && st.definition != nil {
			st.err = k.putInForce(m, st.definition, st.before)
		}
		if m.trouble = st.err; st.err != nil {
			k.log().Error("the definition of a service that was made at run time cannot be used: what it had before stays",
				zap.String("service", m.name), zap.Error(st.err))
		} else if st.definition != nil {
			if m.definition != nil {
				cleanUp(m.definition)
			}
			m.from, m.definition = st.from, st.definition
		}
	}
}

// prepare makes the definition of a step, unless it is the one that the service has.
// The lock is held.
func (k *keeper) prepare(st *step, shadowed bool) error {
	if st.err != nil {
		return st.err
	}
	m := st.m
	s, raw, err := k.filled(st.raw)
	if err != nil {
		return err
	}
	st.from = sha256.Sum256(raw)
	if m.definition != nil && m.from == st.from && m.shadowed == shadowed && len(m.needs()) == 0 {
		return nil
	}
	st.definition, err = k.build(m.name, s)
	return err
}

// filled reads the JSON of a service, with the shared options of its backend.
func (k *keeper) filled(raw json.RawMessage) (ServiceConfig, json.RawMessage, error) {
	var s ServiceConfig
	if err := caddy.StrictUnmarshalJSON(raw, &s); err != nil {
		return s, nil, err
	}
	if len(s.BackendRaw) == 0 {
		return s, nil, errNoBackend
	}
	var err error
	if s.BackendRaw, err = k.rules.Fill(s.BackendRaw); err != nil {
		return s, nil, err
	}
	raw, err = json.Marshal(s)
	return s, raw, err
}

// build makes the definition of a service. The lock is held.
func (k *keeper) build(name string, s ServiceConfig) (*Definition, error) {
	d, err := NewDefinition(k.context(), s, "registry", k.options)
	if err != nil {
		return nil, err
	}
	if err := k.hub.checkMade(name, d); err != nil {
		cleanUp(d)
		return nil, err
	}
	if d.Service.Overlap == "" && !d.Settings.Beside {
		// Who changes such a service expects that the old revision serves until the
		// new one is ready. These options are the keeper's own, and are not in use yet.
		d.Settings.Beside = true
	}
	return d, nil
}

// context returns a context to provision modules with. The context of the
// configuration would keep each of them until the configuration ends.
func (k *keeper) context() caddy.Context {
	if k.scratched++; k.scratched >= scratchUses || k.scratch.Context == nil {
		c := k.ctx
		c.Context = context.WithoutCancel(c.Context)
		k.scratch, _ = caddy.NewContext(c) // nothing ever waits for its end
		k.scratched = 0
	}
	return k.scratch
}

// scratchUses is how many modules are provisioned with one context. It costs as much
// as many of them, and keeps those that were provisioned with it.
const scratchUses = 100

// cleanUp cleans up after a definition, as Caddy does with those of a
// configuration.
func cleanUp(d *Definition) {
	if c, ok := d.Backend.(caddy.CleanerUpper); ok {
		if err := c.Cleanup(); err != nil {
			caddy.Log().Named("usher").Warn("cleaning up a backend", zap.Error(err))
		}
	}
}

// checkMade refuses what services of a configuration are checked for, too.
func (h *Hub) checkMade(name string, d *Definition) error {
	for _, n := range d.Service.Needs {
		if h.configures(n.Service) == nil {
			return fmt.Errorf("it needs %s, which is no service of the configuration", n.Service)
		}
	}
	if b, ok := d.Backend.(scaler.FixedAddresser); ok && b.FixedAddress() != "" {
		return fmt.Errorf("its instances would listen on %s, whatever they are told: a service that is made at run time gets its address from its backend", b.FixedAddress())
	}
	return nil
}

// putInForce makes d what runs as m. The lock is held.
func (k *keeper) putInForce(m *madeService, d *Definition, before *registry.Record) error {
	h, s := k.hub, m.service
	if m.shadowed {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	changes := m.definition != nil && m.definition.Backend.Fingerprint() != d.Backend.Fingerprint()
	s.Loop.SetFallback(k.fallback(m, d, before))
	if err := s.apply(d, true); err != nil {
		return err
	}
	if changes && s.usedWithin(time.Minute) {
		s.Loop.Wake() // its users come back in a moment
	}
	return nil
}

// recall gives services that were never in force what the storage has of them: their
// suspensions and what their policies have learned. The lock is held.
func (k *keeper) recall(all map[string]*Definition) {
	if len(all) == 0 {
		return
	}
	storage, err := k.hub.storage()
	if err != nil {
		return
	}
	g := &Generation{made: true, Logger: k.logger, Storage: storage, Services: make(map[string]*Service, len(all)), Definitions: all}
	for name := range all {
		g.Services[name] = k.made[name].service
	}
	member := k.hub.member.Load()
	if member != nil {
		g.Cluster = member.cluster
	}
	k.hub.loadSeal(g)
	suspended, learned := k.hub.readSuspensions(g), k.hub.readMemories(g)
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	if member != nil {
		suspended = member.suspensions(g)
	}
	k.hub.applySuspensions(suspended)
	k.hub.applyMemories(g, learned)
}

// isActive says whether some definition of s was in force.
func (s *Service) isActive() bool {
	s.Hub.mu.Lock()
	defer s.Hub.mu.Unlock()
	return s.active
}

// usedWithin says whether a request was inside or waited within that time.
func (s *Service) usedWithin(d time.Duration) bool {
	st := s.Reserver.Stats()
	return st.Demand > 0 || st.Arrivals > 0 && time.Since(st.IdleSince) < d
}

// fallback says what becomes of m if d, its new definition, cannot be started.
func (k *keeper) fallback(m *madeService, d *Definition, before *registry.Record) control.Fallback {
	last := m.record.Current()
	window, ok := last.Definition.FallbackAfter()
	if !ok || m.fixed > 0 || before == nil || m.definition == nil || m.record.FellBack != nil || len(m.record.Revisions) < 2 {
		return control.Fallback{}
	}
	if m.definition.Backend.Fingerprint() == d.Backend.Fingerprint() && !m.service.Loop.Unproven() {
		return control.Fallback{}
	}
	name, number, old, variant := m.name, last.Number, m.definition, m.variant
	return control.Fallback{Backend: d.Backend, For: window, Take: func(f *scaler.Failure) {
		if !variant {
			ctx, cancel := context.WithTimeout(k.hub.ctx, storageTimeout)
			defer cancel()
			err := k.registry.FallBack(ctx, name, number, f.Error(), time.Now())
			if err == nil {
				k.tellRecord(name)
				return
			}
			k.log().Error("that the service goes back to its definition of before could not be stored: after a restart the new one is tried again",
				zap.String("service", name), zap.Error(err))
		}
		k.takeBack(name, number, old)
	}}
}

// unproven says whether no instance of a service's newest definition was ready yet, and
// it goes back to the one before if none can be.
func (k *keeper) unproven(name string) bool {
	k.working.Lock()
	defer k.working.Unlock()
	m := k.made[name]
	return m != nil && m.service != nil && !m.shadowed && m.service.Loop.Unproven()
}

// takeBack puts the definition of before in force again, unless it has changed
// once more.
func (k *keeper) takeBack(name string, number int, old *Definition) {
	k.working.Lock()
	defer k.working.Unlock()
	m := k.made[name]
	if m == nil || m.record.Current().Number != number || m.shadowed {
		return
	}
	k.hub.mu.Lock()
	defer k.hub.mu.Unlock()
	if err := m.service.apply(old, true); err != nil {
		m.service.Log().Error("going back to the definition before failed: the service keeps what it had", zap.Error(err))
		return
	}
	m.definition, m.from = old, [32]byte{}
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

// requestParams are those params of a service that may come with a request.
func (k *keeper) requestParams(r *registry.Record) (all []RequestParam) {
	template := k.rules.Templates[r.InForce().Definition.Template]
	if template == nil {
		return nil
	}
	params := template.Params()
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if params[name].Request {
			all = append(all, RequestParam{Name: name, Header: HeaderParam(name)})
		}
	}
	return all
}

// HeaderParam is the header by which a request gives a param.
func HeaderParam(name string) string { return http.CanonicalHeaderKey("Usher-Param-" + name) }

// derived says whether m is derived from a service of the registry.
func (m *madeService) derived() bool { return m.variant || m.fixed > 0 }

// key is by which a derived service is found.
func (m *madeService) key() string {
	if m.fixed > 0 {
		return m.name
	}
	return variantKey(m.record.Name, m.params)
}

// variantKey is by which a variant is found.
func variantKey(name string, params map[string]string) string {
	var b strings.Builder
	b.WriteString(name)
	for _, p := range slices.Sorted(maps.Keys(params)) {
		fmt.Fprintf(&b, "\x00%s\x00%s", p, params[p])
	}
	return b.String()
}

// ErrTooManyServices says that no further service may be made of a template.
var ErrTooManyServices = errors.New("too many services were made of the template")

// Variant returns the service that made is with other params. It is made if need
// be, for as long as it is used.
func (h *Hub) Variant(made *Made, params map[string]string) (*Service, error) {
	k := h.keeper.Load()
	key := variantKey(made.Service.Name, params)
	if v := k.derived.find(key); v != nil {
		return v.Service, nil
	}
	s, fresh, err := k.vary(made, params)
	if err != nil {
		return nil, err
	}
	if member := h.member.Load(); fresh && member != nil {
		member.tellVariant(made.Service.Name, params)
	}
	return s, nil
}

// vary finds the variant of a service with these params, or makes it. fresh says that
// it was made.
func (k *keeper) vary(made *Made, params map[string]string) (s *Service, fresh bool, err error) {
	// Without the lock: to make room, others are taken away. And a known variant is found
	// without it, however its params are given: with those that the service has anyway,
	// say.
	name := made.Service.Name
	variant, _, err := k.registry.Variant(name, params)
	if err != nil {
		return nil, false, refusedVariant(err)
	}
	if variant == name {
		return made.Service, false, nil
	}
	if v := k.derived.find(variant); v != nil {
		return v.Service, false, nil
	}
	k.working.Lock()
	defer k.working.Unlock()
	base := k.made[name]
	if base == nil || base.definition == nil || base.shadowed {
		return nil, false, errors.New("the service is gone")
	}
	// With the lock, none can be taken away.
	variant, raw, err := k.registry.VariantIfRoom(name, params)
	if err != nil {
		return nil, false, refusedVariant(err)
	}
	if variant == name {
		return base.service, false, nil // the service has changed meanwhile
	}
	if m := k.made[variant]; m != nil {
		return m.service, false, nil // another request has made it meanwhile
	}
	m := &madeService{name: variant, record: base.record, params: params, variant: true, used: time.Now()}
	k.derive(name, m)
	k.apply([]*step{{m: m, raw: raw}})
	if m.trouble != nil {
		err := m.trouble
		k.remove(variant)
		return nil, false, err
	}
	m.revision = base.revision
	k.publish(m, nil)
	k.tellCluster()
	return m.service, true, nil
}

// refusedVariant says by ErrTooManyServices why the registry has refused a variant, if
// that is the reason.
func refusedVariant(err error) error {
	if registry.KindOf(err) == registry.TooMany {
		return fmt.Errorf("%w: %w", ErrTooManyServices, err)
	}
	return err
}

// derive takes m up as one that is derived from a service. The lock is held.
func (k *keeper) derive(service string, m *madeService) {
	k.made[m.name] = m
	if k.varied[service] == nil {
		k.varied[service] = make(map[string]bool)
	}
	k.varied[service][m.name] = true
}

// evict takes a variant away to make room for another one, if it has neither requests
// nor instances. The registry calls it while it changes something.
func (k *keeper) evict(name string) bool {
	k.working.Lock()
	defer k.working.Unlock()
	m := k.made[name]
	if m == nil {
		return true
	}
	if !m.unused() {
		return false
	}
	k.end(name)
	return true
}

// end takes a variant away that is unused, here and at the other Caddys. The lock is
// held.
func (k *keeper) end(name string) {
	k.remove(name)
	if m := k.hub.member.Load(); m != nil && m.leading() {
		k.hub.background.Go(func() { m.driver.Tell(newsVariantGone, []byte(name)) })
	}
}

// unused says whether m has neither requests nor instances.
func (m *madeService) unused() bool {
	if m.service == nil {
		return true
	}
	st := m.service.Reserver.Stats()
	if shared := m.service.shared; shared != nil {
		if w := shared.whole(m.name).others; w.Waiting+w.InUse > 0 {
			return false
		}
	}
	return st.Demand == 0 && st.InUse == 0 && st.Waiting == 0 && m.service.Loop.Status().State == control.Asleep
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

// check says whether a service could be made as that JSON says. Nothing runs after
// that.
func (k *keeper) check(name string, raw json.RawMessage) error {
	k.working.Lock()
	defer k.working.Unlock()
	if k.rules == nil {
		return ErrNoRegistry
	}
	s, _, err := k.filled(raw)
	if err != nil {
		return err
	}
	d, err := k.build(name, s)
	if err != nil {
		return err
	}
	defer cleanUp(d)
	if d.Missing != nil {
		return fmt.Errorf("backend %s: %w", d.BackendType(), d.Missing)
	}
	return nil
}

// sweep takes away what is of use no longer.
func (k *keeper) sweep(ctx context.Context) {
	now := time.Now()
	k.working.Lock()
	if k.rules == nil {
		k.working.Unlock()
		return
	}
	member := k.hub.member.Load()
	used, inside := make(map[string]time.Time), make(map[string]bool)
	var idle []string
	alone := make(map[string]bool) // used, and the Caddy that leads does not see it
	for name, m := range k.made {
		if m.look(now) {
			alone[m.record.Name] = true
		}
		service := m.record.Name // what is derived from a service is a use of it
		if m.used.After(used[service]) {
			used[service] = m.used
		}
		unused := m.unused()
		inside[service] = inside[service] || !unused
		if m.variant && unused && now.Sub(m.used) > variantIdle {
			idle = append(idle, name)
		}
	}
	for _, name := range idle {
		used[k.made[name].record.Name] = now
		k.end(name)
	}
	k.working.Unlock()
	ctx, cancel := context.WithTimeout(ctx, madeTimeout)
	defer cancel()
	uses := func(name string) (time.Time, bool) { return used[name], inside[name] }
	if member != nil && !member.leading() {
		uses = nil // the Caddy that leads knows of the requests of all, or is told
	}
	if err := k.registry.Sweep(ctx, now, uses); err != nil {
		k.log().Error("services that are of no use any more could not be taken away", zap.Error(err))
	}
	switch {
	case member == nil:
	case member.leading():
		for name := range inside {
			if r := k.registry.Stored(name); r != nil && r.IsDeleted() {
				k.tellRecord(name)
			}
		}
	default:
		for names := range slices.Chunk(slices.Sorted(maps.Keys(alone)), namesTold) {
			member.tellUsed(names)
		}
	}
}

// variantIdle is how long a variant that is not used is kept. Another request makes
// it again.
const variantIdle = 24 * time.Hour

// look takes note of whether m was used since it was looked at last. It says whether
// it was by requests at this Caddy of which others know nothing.
func (m *madeService) look(now time.Time) (alone bool) {
	if m.service == nil {
		return false
	}
	n := m.service.Reserver.Stats().Arrivals
	if shared := m.service.shared; shared != nil {
		n += shared.whole(m.name).others.Arrivals
	}
	if n != m.arrivals {
		m.arrivals, m.used = n, now
		return m.service.shared == nil
	}
	return m.service.shared == nil && m.service.Reserver.Stats().Demand > 0
}
