package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	templates map[string]int     // services in force made of a template

	// turn is held, by sending, for a change, also while the store works. It guards the
	// fields below.
	turn     chan struct{}
	position Position
	doubtful map[string]bool     // names of which the store may have something else
	broken   map[string]error    // stored records that cannot be read
	claims   map[string][]string // hosts, to the names of the stored services that claim them
	owners   map[string]int      // stored services in force
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
		turn: make(chan struct{}, 1), doubtful: make(map[string]bool), broken: make(map[string]error),
		claims: make(map[string][]string), owners: make(map[string]int),
	}
	r.rules.Store(&Rules{})
	return r
}

// Use sets the rules of a new configuration. Services stay as they are, also those that
// the rules would not permit any more: what they resolve to may have changed.
func (r *Registry) Use(rules Rules) {
	r.turn <- struct{}{}
	defer r.endTurn()
	r.rules.Store(&rules)
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

// Put makes or replaces a service. body is a Definition. An equal definition of the same
// owner changes nothing: the record is returned as it is. A service that was deleted
// begins again, with its revisions.
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
// If-Match.
func (r *Registry) Patch(ctx context.Context, call Call, name string, patch []byte) (*Record, error) {
	change, err := parse(patch)
	if err != nil {
		return nil, refuse(Invalid, "the patch is not valid JSON: %w", err)
	}
	record, _, err := r.change(ctx, call, name, func(old *Record) (Definition, error) {
		if old == nil || old.IsDeleted() {
			return Definition{}, notFound(name)
		}
		target, err := parse(old.Current().Definition.canonical())
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
// DeletedKept.
func (r *Registry) Delete(ctx context.Context, call Call, name string) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
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
	return r.write(ctx, gone)
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

// change gives a service the definition that define returns for the record in the store:
// nil, in force, or deleted. It returns the record before, too.
func (r *Registry) change(ctx context.Context, call Call, name string, define func(old *Record) (Definition, error)) (record, old *Record, err error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	end, err := r.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer end()
	if old, err = r.changeable(call, name); err != nil {
		return nil, nil, err
	}
	if err := checkConditions(call, old); err != nil {
		return nil, nil, err
	}
	d, err := define(old)
	if err != nil {
		return nil, nil, err
	}
	owner := call.Owner
	if old != nil && owner == "" {
		owner = old.Owner
	}
	if err := r.checkChange(call, name, owner, &d, old); err != nil {
		return nil, nil, err
	}
	if old != nil && !old.IsDeleted() && old.Owner == owner && old.Current().Definition.equal(&d) {
		if old.FellBack == nil {
			return old, old, nil
		}
		record = old.tryAgain(call.Now)
	} else {
		record = nextRecord(old, name, owner, Revision{Definition: d, By: call.By, At: instant(call.Now)}, r.rules.Load().keepRevisions())
	}
	if err := r.write(ctx, record); err != nil {
		return nil, nil, err
	}
	return record, old, nil
}

// changeable returns the stored record of that name, which may be deleted, or nil. It
// returns an error if the caller may not change it.
func (r *Registry) changeable(call Call, name string) (*Record, error) {
	if r.rules.Load().configured(name) {
		return nil, refuse(Conflict, "the service %s is in the configuration; change it there", name)
	}
	if err := r.broken[name]; err != nil {
		return nil, refuse(Conflict, "the stored record of %s cannot be read, so it stays as it is: %w", name, err)
	}
	old := r.Find(name)
	if old != nil && old.Origin == Discovered {
		return nil, refuse(Conflict, "the service %s was discovered (%s); change its labels there", name, old.Source)
	}
	if call.Operator {
		return old, nil
	}
	if call.Owner == "" {
		return nil, refuse(Forbidden, "the request has no owner, so it can change no service")
	}
	if old != nil && old.Owner != call.Owner {
		return nil, refuse(Forbidden, "the service %s belongs to another owner", name)
	}
	return old, nil
}

// checkConditions returns an error if the call's conditions do not hold for a record,
// which may be nil or deleted.
func checkConditions(call Call, old *Record) error {
	exists := old != nil && !old.IsDeleted()
	if call.IfNoneMatch != "" {
		if strings.TrimSpace(call.IfNoneMatch) != "*" {
			return refuse(Invalid, "If-None-Match is %q; only * makes sense for a change", call.IfNoneMatch)
		}
		if exists {
			return refuse(Stale, "the service %s exists already, and If-None-Match: * creates only", old.Name)
		}
	}
	switch {
	case call.IfMatch == "" && exists:
		return refuse(ConditionNeeded, "the service %s exists; a change needs If-Match with its ETag %s", old.Name, old.ETag())
	case call.IfMatch == "":
		return nil
	case old == nil:
		return refuse(Stale, "there is no service to match If-Match")
	case !matches(call.IfMatch, old.ETag()) || strings.TrimSpace(call.IfMatch) == "*" && !exists:
		return refuse(Stale, "the service %s has changed: its ETag is %s now", old.Name, old.ETag())
	}
	return nil
}

// matches says whether a header If-Match has the strong tag.
func matches(header, tag string) bool {
	for item := range strings.SplitSeq(header, ",") {
		if item = strings.TrimSpace(item); item == tag || item == "*" {
			return true
		}
	}
	return false
}

// checkChange returns an error if name cannot get the definition d: by the rules, by
// other services, or by a limit.
func (r *Registry) checkChange(call Call, name, owner string, d *Definition, old *Record) error {
	rules := r.rules.Load()
	if err := rules.checkDefinition(call, name, d); err != nil {
		return err
	}
	for _, host := range d.Hosts {
		if other := r.hosts[host]; other != "" && other != name {
			return refuse(Conflict, "the host %s belongs to another service", host)
		}
	}
	before := ""
	if old != nil && !old.IsDeleted() {
		before = old.Current().Definition.Template
	}
	fresh := old == nil || old.IsDeleted() || old.Owner != owner
	if limit := rules.OwnerLimit; fresh && !call.Operator && limit > 0 && r.owners[owner] >= limit {
		return refuse(TooMany, "the owner has %d services, which is the limit; delete one first", limit)
	}
	if d.Template != "" && d.Template != before {
		if limit := rules.Templates[d.Template].maxServices; limit > 0 && r.templates[d.Template] >= limit {
			return refuse(TooMany, "there are %d services of template %s, which is the limit", limit, d.Template)
		}
	}
	return nil
}

// endTurn lets the next change begin.
func (r *Registry) endTurn() { <-r.turn }

// begin begins a change: this one alone, in all processes, with all that was changed
// before. end ends it.
func (r *Registry) begin(ctx context.Context) (end func(), err error) {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, storeFailed("the registry is busy", ctx.Err())
	}
	unlock, err := r.store.Lock(ctx)
	if err != nil {
		r.endTurn()
		return nil, storeFailed("the store cannot be locked", err)
	}
	end = func() {
		unlock()
		r.endTurn()
	}
	if err := r.follow(ctx); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func storeFailed(what string, err error) error {
	return refuse(StoreFailed, "services cannot be changed now: %s: %w", what, err)
}

// write stores a record and puts it in force.
func (r *Registry) write(ctx context.Context, record *Record) error {
	if err := r.store.Put(context.WithoutCancel(ctx), record.Name, EncodeRecord(record)); err != nil {
		r.doubtful[record.Name] = true
		return storeFailed("the store did not write the service "+record.Name, err)
	}
	r.publish(record.Name, record)
	return nil
}

// Load reads all records from the store. It returns an error if the store cannot tell
// which there are. Records that cannot be read are in Rejected.
func (r *Registry) Load(ctx context.Context) error {
	r.turn <- struct{}{}
	defer r.endTurn()
	return r.follow(ctx)
}

// Refresh reads the records of these names, because others have changed them. Without a
// name it looks whether others have changed anything.
func (r *Registry) Refresh(ctx context.Context, names ...string) error {
	r.turn <- struct{}{}
	defer r.endTurn()
	if len(names) == 0 || !r.Loaded() {
		return r.follow(ctx)
	}
	return r.reload(ctx, names)
}

// follow reads what has changed in the store.
func (r *Registry) follow(ctx context.Context) error {
	changes, err := r.store.Changes(ctx, r.position)
	if err != nil {
		return storeFailed("the store does not tell what has changed", err)
	}
	names := changes.Names
	if changes.All || !r.Loaded() {
		if names, err = r.store.List(ctx); err != nil {
			return storeFailed("the store does not list its records", err)
		}
		// What is not listed any more may be gone.
		stored := make(map[string]bool, len(names))
		for _, name := range names {
			stored[name] = true
		}
		for _, known := range []map[string]*Record{r.live, r.deleted} {
			for name, record := range known {
				if !stored[name] && record.Origin == RunTime {
					names = append(names, name)
				}
			}
		}
	}
	for name := range r.doubtful {
		names = append(names, name)
	}
	if err := r.reload(ctx, names); err != nil {
		return err
	}
	r.position = changes.Next
	r.isLoaded.Store(true)
	return nil
}

// loaders is how many records are read at a time.
const loaders = 8

// Merge takes a record that another Caddy tells, if it is newer than what is known here
// and in the store. It is written, unless the store has it. The caller trusts the other
// Caddy: the rules are not asked.
func (r *Registry) Merge(ctx context.Context, record *Record) error {
	if known := r.Stored(record.Name); known != nil && !record.Newer(known) {
		return nil
	}
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if !record.Newer(r.Stored(record.Name)) {
		return nil
	}
	return r.write(ctx, record)
}

// reload reads records from the store and puts them in force.
func (r *Registry) reload(ctx context.Context, names []string) error {
	for chunk := range slices.Chunk(names, 64*loaders) {
		type result struct {
			record *Record
			err    error
		}
		results := make([]result, len(chunk))
		var next atomic.Int64
		var all sync.WaitGroup
		for range min(loaders, len(chunk)) {
			all.Go(func() {
				for i := next.Add(1) - 1; i < int64(len(chunk)); i = next.Add(1) - 1 {
					results[i].record, results[i].err = r.load(ctx, chunk[i])
				}
			})
		}
		all.Wait()
		for i, name := range chunk {
			var broken *brokenError
			switch err := results[i].err; {
			case errors.As(err, &broken):
				// What was in force stays.
				r.broken[name] = broken.err
			case err != nil:
				return storeFailed("the store did not read the service "+name, err)
			default:
				delete(r.broken, name)
				r.publish(name, results[i].record)
			}
			delete(r.doubtful, name)
		}
	}
	return nil
}

// brokenError says that a stored record cannot be read.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }

// load returns a stored record, or nil if there is none.
func (r *Registry) load(ctx context.Context, name string) (*Record, error) {
	if err := CheckName(name); err != nil {
		return nil, &brokenError{err}
	}
	data, err := r.store.Load(ctx, name)
	if errors.Is(err, ErrNotStored) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	record, err := DecodeRecord(data)
	if err == nil && record.Name != name {
		err = fmt.Errorf("it is the record of %s", record.Name)
	}
	if err != nil {
		return nil, &brokenError{err}
	}
	return record, nil
}

// publish puts a stored record in force, or deletes it. nil: there is none any more.
func (r *Registry) publish(name string, record *Record) {
	old, next := r.live[name], record
	if record != nil && record.IsDeleted() {
		next = nil
	}
	r.mu.Lock()
	delete(r.live, name)
	delete(r.deleted, name)
	switch {
	case next != nil:
		r.live[name] = next
	case record != nil:
		r.deleted[name] = record
	}
	r.count(old, -1)
	r.count(next, +1)
	r.claim(name, old, next)
	r.mu.Unlock()
	r.tell(old, next)
}

// tell reports a change of what is in force.
func (r *Registry) tell(old, next *Record) {
	if old == nil && next == nil || old != nil && next != nil && old.etag == next.etag && old.Owner == next.Owner && (old.FellBack == nil) == (next.FellBack == nil) {
		return
	}
	r.changed(old, next)
}

// count counts a stored service in force.
func (r *Registry) count(record *Record, by int) {
	if record == nil || record.Origin == Discovered {
		return
	}
	add(r.owners, record.Owner, by)
	add(r.templates, record.Current().Definition.Template, by)
}

func add(counts map[string]int, key string, by int) {
	if counts[key] += by; counts[key] == 0 {
		delete(counts, key)
	}
}

// claim sets which hosts lead to a stored service. If the store has two services that
// claim a host, which the checks do not permit, the first one by name has it.
func (r *Registry) claim(name string, old, next *Record) {
	touched := make(map[string]bool)
	if old != nil && old.Origin == RunTime {
		for _, host := range old.Current().Definition.Hosts {
			touched[host] = true
			r.claims[host] = slices.DeleteFunc(r.claims[host], func(n string) bool { return n == name })
		}
	}
	if next != nil {
		for _, host := range next.Current().Definition.Hosts {
			touched[host] = true
			r.claims[host] = append(r.claims[host], name)
			slices.Sort(r.claims[host])
		}
	}
	for host := range touched {
		if names := r.claims[host]; len(names) > 0 {
			r.hosts[host] = names[0]
			continue
		}
		delete(r.claims, host)
		delete(r.hosts, host)
	}
}
