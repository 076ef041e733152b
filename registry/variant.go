package registry

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// variant is a service with values of params that requests gave.
type variant struct {
	base, template string
	record         *Record // of which service was made
	by             *Template
	service        json.RawMessage
	used           uint64 // when it was asked for last, in the order of all calls
	evicting       bool   // Evict was asked and has not answered: it counts, and is not given out
}

// variantName returns the name of the variant of a service with these values of all params.
func variantName(base string, values map[string]string) string {
	sum := sha256.Sum256(render(values))
	return base + "..p" + hex.EncodeToString(sum[:8])
}

// Variant returns the name and the definition of the service that a request gets which
// gives these params to the service of that name. service is nil, and variant is name, if
// the values are those that the service has anyway.
//
// Each other variant counts as a service of the template, until DropVariant or the end of
// the service. At the template's limit, variants that Evict ends make room, the one first
// that was not asked for longest. If none can, it is TooMany.
//
// A param that the template does not permit in requests is Forbidden, a value that it
// refuses Invalid. A service that is not made of a template, or does not exist, is
// NotFound. It is a Conflict if the template has changed so that it refuses what the
// service has.
func (r *Registry) Variant(name string, params map[string]string) (string, json.RawMessage, error) {
	return r.variantOf(name, params, r.rules.Load().Evict)
}

// VariantIfRoom is like Variant, but ends no other variant.
func (r *Registry) VariantIfRoom(name string, params map[string]string) (string, json.RawMessage, error) {
	return r.variantOf(name, params, nil)
}

func (r *Registry) variantOf(name string, params map[string]string, evict evictor) (string, json.RawMessage, error) {
	record, rules := r.Get(name), r.rules.Load()
	if record == nil {
		return "", nil, notFound(name)
	}
	if len(params) == 0 {
		return name, nil, nil
	}
	d := &record.InForce().Definition
	t, err := rules.template(d.Template)
	if err != nil {
		return "", nil, refuse(NotFound, "the service %s is not made of a template that takes params", name)
	}
	for _, param := range sortedKeys(params) {
		if p := t.params[param]; p == nil || !p.Request {
			return "", nil, refuse(Forbidden, "the service %s takes no param %q from requests", name, param)
		}
	}
	own, err := t.values(d.Params)
	if err != nil {
		return "", nil, refuse(Conflict, "the service %s does not fit its template any more: %w", name, err)
	}
	given := maps.Clone(own)
	maps.Copy(given, params)
	values, err := t.values(given)
	if err != nil {
		return "", nil, err
	}
	if maps.Equal(values, own) {
		return name, nil, nil
	}
	return r.variant(record, t, values, evict)
}

func (r *Registry) variant(record *Record, t *Template, values map[string]string, evict evictor) (string, json.RawMessage, error) {
	name := variantName(record.Name, values)
	if service := r.knownVariant(name, record, t); service != nil {
		return name, service, nil
	}
	service, err := t.Expand(values)
	if err != nil {
		return "", nil, err
	}
	made := &variant{base: record.Name, template: record.InForce().Definition.Template, record: record, by: t, service: service}
	for !r.addVariant(name, made, t.maxServices) {
		switch {
		case r.Get(record.Name) == nil:
			return "", nil, notFound(record.Name)
		case r.isEvicting(name):
			return "", nil, refuse(TooMany, "the variant is being ended, so that another one has room; try again")
		}
		if err := r.makeRoom(t, made.template, evict); err != nil {
			return "", nil, err
		}
	}
	return name, service, nil
}

// knownVariant returns the definition of a variant that was made already.
func (r *Registry) knownVariant(name string, record *Record, t *Template) json.RawMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.variants[name]
	if v == nil || v.evicting || v.record.etag != record.etag || v.record.InForce().Number != record.InForce().Number || v.by != t {
		return nil
	}
	r.asked++
	v.used = r.asked
	return v.service
}

// addVariant adds a variant, or replaces it. It returns false if there is no room for it,
// or the service has ended.
func (r *Registry) addVariant(name string, made *variant, limit int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[made.base] == nil {
		return false
	}
	if v := r.variants[name]; v != nil && v.evicting {
		return false
	} else if v == nil {
		if _, full := r.room(made.template, limit); full {
			return false
		}
	}
	r.asked++
	made.used = r.asked
	r.variants[name] = made
	return true
}

// room returns the variants of a template, the one first that was not asked for longest,
// and whether there are limit services with them. mu is held.
func (r *Registry) room(template string, limit int) (variants []string, full bool) {
	for name, v := range r.variants {
		if v.template == template {
			variants = append(variants, name)
		}
	}
	slices.SortFunc(variants, func(a, b string) int { return cmp.Compare(r.variants[a].used, r.variants[b].used) })
	return variants, r.templates[template]+len(variants) >= limit
}

func (r *Registry) isEvicting(name string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	v := r.variants[name]
	return v != nil && v.evicting
}

// evictor is Rules.Evict; nil ends none.
type evictor func(variant string) bool

// evict ends one variant of those, if one is unused. One that is given out meanwhile would
// run and not count, so it is not.
func (r *Registry) evict(names []string, evict evictor) bool {
	if evict == nil {
		return false
	}
	for _, name := range names {
		v := r.setEvicting(name)
		if v == nil {
			continue
		}
		gone := evict(name)
		r.mu.Lock()
		v.evicting = false
		if gone && r.variants[name] == v {
			delete(r.variants, name)
		}
		r.mu.Unlock()
		if gone {
			return true
		}
	}
	return false
}

// setEvicting returns a variant that is not given out from then on, or nil if there is none
// that another call does not evict already.
func (r *Registry) setEvicting(name string) *variant {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.variants[name]
	if v == nil || v.evicting {
		return nil
	}
	v.evicting = true
	return v
}

// DropVariant says that a variant has ended: it does not count any more.
func (r *Registry) DropVariant(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.variants, name)
}

// Variants returns the names of the variants of a service, sorted.
func (r *Registry) Variants(base string) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var names []string
	for name, v := range r.variants {
		if v.base == base {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, strings.Compare)
	return names
}
