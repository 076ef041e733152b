package hub

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-usher/usher/registry"
)

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
