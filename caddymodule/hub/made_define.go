package hub

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
)

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
