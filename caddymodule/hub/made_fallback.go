package hub

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

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
