package hub

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"go.uber.org/zap"
)

// A revision of a service that a split names runs beside the one in force, as a
// service of its own, for as long as a configuration has the split. It is made when
// the split comes into force, or the revision into the registry. So every Caddy of a
// cluster has it, and the one that leads can start its instances. If its instances
// would be made of the same as those of the service, it is the service itself.

// revisionName is the name of the service that a revision runs as.
func revisionName(service string, revision int) string {
	return service + "..r" + strconv.Itoa(revision)
}

// findRevision returns a revision of a service; nil if there is none. It is the
// service itself if that revision is in force.
func (h *Hub) findRevision(service string, revision int, derived string) *Made {
	k := h.keeper.Load()
	if k == nil {
		return nil
	}
	made := k.names.find(service)
	if made == nil || made.revision == revision {
		return made
	}
	return k.derived.find(derived)
}

// splitRevisions returns the revisions that splits name, by service.
func (h *Hub) splitRevisions() map[string]map[int]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	named := make(map[string]map[int]bool)
	for _, g := range h.generations {
		for _, s := range g.Splits {
			for _, side := range s.sides {
				if side.revision == 0 {
					continue
				}
				if named[side.service] == nil {
					named[side.service] = make(map[int]bool)
				}
				named[side.service][side.revision] = true
			}
		}
	}
	return named
}

// useRevisions makes the revisions that splits name, and takes those away that none
// names any more. What those have, they finish.
func (k *keeper) useRevisions() {
	k.working.Lock()
	defer k.working.Unlock()
	before := k.named
	k.named = k.hub.splitRevisions()
	for service, numbers := range before {
		for number := range numbers {
			if !k.named[service][number] {
				k.dropRevision(revisionName(service, number))
			}
		}
	}
	for service := range k.named {
		k.makeRevisions(service)
	}
}

// makeRevisions lets the revisions of a service that splits name run as its record
// says. The lock is held.
func (k *keeper) makeRevisions(service string) {
	base := k.made[service]
	if base == nil || base.definition == nil || base.shadowed {
		return
	}
	runs := map[string]string{base.definition.Backend.Fingerprint(): service}
	for _, number := range slices.Sorted(maps.Keys(k.named[service])) {
		name, rev := revisionName(service, number), base.record.Revision(number)
		if rev == nil || number == base.revision {
			k.dropRevision(name)
			continue
		}
		raw, err := k.registry.Resolve(&rev.Definition)
		fingerprint := ""
		if err == nil {
			fingerprint, err = k.fingerprint(name, raw)
		}
		same := runs[fingerprint]
		switch {
		case err != nil:
		case same == service:
			k.dropRevision(name)
			k.derived.set(name, base.found)
			continue
		case same != "":
			err = fmt.Errorf("its instances are made of the same as those of %s: let the splits name one of the two", same)
		default:
			runs[fingerprint] = name
		}
		m := k.made[name]
		if m == nil {
			m = &madeService{name: name, fixed: number}
			k.derive(service, m)
		}
		before := m.record
		m.record, m.revision = base.record, number
		k.apply([]*step{{m: m, raw: raw, err: err, before: before}})
		k.publish(m, nil)
	}
}

// fingerprint returns that of the backend of a service. The lock is held.
func (k *keeper) fingerprint(name string, raw json.RawMessage) (string, error) {
	s, _, err := k.filled(raw)
	if err != nil {
		return "", err
	}
	d, err := k.build(name, s)
	if err != nil {
		return "", err
	}
	defer cleanUp(d)
	return d.Backend.Fingerprint(), nil
}

// dropRevision takes a revision away that runs beside the one in force, if it does.
// The lock is held.
func (k *keeper) dropRevision(name string) {
	if m := k.made[name]; m != nil && m.fixed > 0 {
		k.log().Info("a revision of a service no longer runs beside the one in force", zap.String("service", m.record.Name), zap.Int("revision", m.fixed))
		k.remove(name)
	}
	k.derived.set(name, nil)
}
