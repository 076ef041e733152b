package registry

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DeletedKept is how long a deleted service can be brought back.
const DeletedKept = 24 * time.Hour

// Registry has the services that are made while the program runs. All methods may be
// called at the same time. Changes are made one after the other.
type Registry struct {
	store   Store
	changed func(old, new *Record)
	rules   atomic.Pointer[Rules]

	isLoaded atomic.Bool

	// mu is held for a moment only. What it guards is changed only by the holder of the
	// turn, which therefore reads it without mu.
	mu        sync.RWMutex
	live      map[string]*Record // in force: stored and not deleted, or discovered
	deleted   map[string]*Record // stored and deleted
	hosts     map[string]string  // to the name in live
	templates map[string]int     // stored services in force made of a template
	variants  map[string]*variant
	asked     uint64 // how often a variant was asked for
	rejected  []Rejected
	broken    map[string]error // stored records that cannot be read

	// turn is held, by sending, for a change, also while the store works. It guards the
	// fields below.
	turn     chan struct{}
	position Position
	doubtful map[string]bool     // names of which the store may have something else
	claims   map[string][]string // hosts, to the names of the stored services that claim them
	owners   map[string]int      // stored services in force
	swept    time.Time           // the first Sweep that looked at uses

	found      map[string]*foundList // by source
	wanted     map[string]bool       // names and hosts that found objects want
	foundHosts map[string]string     // hosts that found objects have
}

// Call says who asks, and on which condition.
type Call struct {
	// Who asks, for the history.
	By string

	// Whose services these are. An operator sets the owner with it, or leaves the owner
	// as it is with "".
	Owner string

	// The caller may change services of any owner, and define whole services.
	Operator bool

	// The headers of these names, or "".
	IfMatch, IfNoneMatch string

	// The time. Required.
	Now time.Time
}

// New returns a registry that keeps its records in store. It knows none before Load, and
// allows nothing before Use.
//
// changed is called when a service begins (old is nil), ends (new is nil) or changes its
// revision, its owner or FellBack, in the order of the changes. The change is in force then. changed
// must not change the registry; it may read it.
func New(store Store, changed func(old, new *Record)) *Registry {
	r := &Registry{
		store: store, changed: changed,
		live: make(map[string]*Record), deleted: make(map[string]*Record), hosts: make(map[string]string), templates: make(map[string]int),
		variants: make(map[string]*variant), broken: make(map[string]error),
		turn: make(chan struct{}, 1), doubtful: make(map[string]bool),
		claims: make(map[string][]string), owners: make(map[string]int), found: make(map[string]*foundList),
	}
	r.rules.Store(&Rules{})
	return r
}

// Use sets the rules of a new configuration. Stored services stay as they are, also those
// that the rules would not permit any more: what they resolve to may have changed, or
// be an error. Found objects are judged anew.
func (r *Registry) Use(rules Rules) {
	r.turn <- struct{}{}
	defer r.endTurn()
	r.rules.Store(&rules)
	for source, list := range r.found {
		for i, c := range list.candidates {
			list.candidates[i] = newCandidate(&rules, source, list.backend, c.found)
		}
	}
	r.settle()
}

// Get returns the service in force of that name, or nil. A service that the configuration
// shadows is in force here.
func (r *Registry) Get(name string) *Record {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.live[name]
}

// Find returns the service of that name, also a deleted one that can be brought back, or
// nil.
func (r *Registry) Find(name string) *Record {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if record := r.live[name]; record != nil {
		return record
	}
	return r.deleted[name]
}

// List returns all services in force, by name.
func (r *Registry) List() []*Record { return r.sorted(r.live) }

// Deleted returns all services that can be brought back, by name.
func (r *Registry) Deleted() []*Record { return r.sorted(r.deleted) }

// Stored returns what the store has of a service, also of a deleted one, or nil.
func (r *Registry) Stored(name string) *Record {
	if record := r.Find(name); record != nil && record.Origin == RunTime {
		return record
	}
	return nil
}

// AllStored returns all that the store has, deleted services too, by name.
func (r *Registry) AllStored() []*Record {
	r.mu.RLock()
	records := slices.AppendSeq(slices.Collect(maps.Values(r.deleted)), maps.Values(r.live))
	r.mu.RUnlock()
	records = slices.DeleteFunc(records, func(record *Record) bool { return record.Origin != RunTime })
	slices.SortFunc(records, byName)
	return records
}

func byName(a, b *Record) int { return strings.Compare(a.Name, b.Name) }

func (r *Registry) sorted(from map[string]*Record) []*Record {
	r.mu.RLock()
	records := slices.Collect(maps.Values(from))
	r.mu.RUnlock()
	slices.SortFunc(records, byName)
	return records
}

// ByHost returns the name of the service that claims a host, or "". The host is in the
// form that definitions have: lower case, no port. A service that the configuration
// shadows is not found by its hosts.
func (r *Registry) ByHost(host string) string {
	r.mu.RLock()
	name := r.hosts[host]
	r.mu.RUnlock()
	if name == "" || r.rules.Load().configured(name) {
		return ""
	}
	return name
}

// Resolve returns the service that a definition describes, by the rules in force.
func (r *Registry) Resolve(d *Definition) (json.RawMessage, error) {
	return r.rules.Load().resolve(d)
}

// Put makes or replaces a service. body is a Definition. A "***" in it keeps the secret
// that is shown so. An equal definition of the same owner changes nothing, but lets a
// revision that has failed be tried again. A service that was deleted begins again, with
// its revisions.
//
// A service that exists is replaced only with If-Match, with its ETag or "*". With
// If-None-Match: * none is replaced.
func (r *Registry) Put(ctx context.Context, call Call, name string, body []byte) (record *Record, created bool, err error) {
	d, err := ParseDefinition(body)
	if err != nil {
		return nil, false, err
	}
	record, old, err := r.change(ctx, call, name, func(*Record) (Definition, error) { return d, nil })
	return record, err == nil && (old == nil || old.IsDeleted()), err
}

// Patch changes a service by a merge patch of its definition, as RFC 7396 says. It needs
// If-Match. A "***" in the body keeps the secret that is shown so.
func (r *Registry) Patch(ctx context.Context, call Call, name string, patch []byte) (*Record, error) {
	change, err := parse(patch)
	if err != nil {
		return nil, refuse(Invalid, "the patch is not valid JSON: %w", err)
	}
	record, _, err := r.change(ctx, call, name, func(old *Record) (Definition, error) {
		if old == nil || old.IsDeleted() {
			return Definition{}, notFound(name)
		}
		// Of what is shown: a secret that stays goes the way of a "***" in the body, so
		// that it cannot come to where it would be readable.
		shown := r.rules.Load().shown(old.Current().Definition)
		target, err := parse(shown.canonical())
		if err != nil {
			return Definition{}, refuse(Invalid, "the definition of %s cannot be patched: %w", name, err)
		}
		return definitionOf(mergePatch(target, change))
	})
	return record, err
}

// Rollback makes an earlier revision a new one; 0 is the one before the current one. It
// also brings back a deleted service, where 0 is its last revision. A service in force
// needs If-Match.
func (r *Registry) Rollback(ctx context.Context, call Call, name string, to int) (*Record, error) {
	record, _, err := r.change(ctx, call, name, func(old *Record) (Definition, error) {
		if old == nil {
			return Definition{}, notFound(name)
		}
		rev := old.Revision(to)
		if to == 0 {
			before := len(old.Revisions) - 2
			if old.IsDeleted() {
				before++
			}
			if before >= 0 {
				rev = &old.Revisions[before]
			}
		}
		if rev == nil {
			return Definition{}, refuse(NotFound, "%s has no such revision any more", name)
		}
		return rev.Definition, nil
	})
	return record, err
}

// Delete ends a service. It needs If-Match. The service can be brought back for
// DeletedKept. A stored record that cannot be read is removed for good, for an operator
// with If-Match: *.
func (r *Registry) Delete(ctx context.Context, call Call, name string) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if r.broken[name] != nil && call.Operator && strings.TrimSpace(call.IfMatch) == "*" {
		return r.remove(ctx, name)
	}
	old, err := r.changeable(call, name)
	if err != nil {
		return err
	}
	if old == nil || old.IsDeleted() {
		return notFound(name)
	}
	if err := checkConditions(call, old); err != nil {
		return err
	}
	gone := old.changedAt(call.Now)
	gone.Deleted, gone.DeletedBy = instant(call.Now), call.By
	return r.write(ctx, gone.sealed())
}

// FallBack says that a revision has failed. If it is still the current one, the newest
// revision that has not failed is in force from then on: see Record.InForce. It is a
// Conflict if there is no such revision.
func (r *Registry) FallBack(ctx context.Context, name string, revision int, reason string, now time.Time) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	old := r.live[name]
	if old == nil || old.Origin != RunTime || old.Current().Number != revision || old.FellBack != nil {
		return nil // there is another truth by now
	}
	next := old.failed(reason, now)
	if next.FellBack == nil {
		return refuse(Conflict, "%s has no earlier revision that works", name)
	}
	return r.write(ctx, next)
}

// Loaded says whether the records of the store are known.
func (r *Registry) Loaded() bool { return r.isLoaded.Load() }

func notFound(name string) error { return refuse(NotFound, "there is no service %s", name) }

// instant returns t as it is stored.
func instant(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
