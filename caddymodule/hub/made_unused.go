package hub

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler/control"
)

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
