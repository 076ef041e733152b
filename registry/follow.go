package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// takeTurn waits until no other change is made.
func (r *Registry) takeTurn(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return storeFailed("another change takes too long", ctx.Err())
	}
}

// endTurn lets the next change begin.
func (r *Registry) endTurn() { <-r.turn }

// begin begins a change: this one alone, in all processes, with all that was changed
// before. end ends it.
func (r *Registry) begin(ctx context.Context) (end func(), err error) {
	if err := r.takeTurn(ctx); err != nil {
		return nil, err
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
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
	defer r.endTurn()
	return r.follow(ctx)
}

// Refresh reads the records of these names, because others have changed them. Without a
// name it looks whether others have changed anything.
func (r *Registry) Refresh(ctx context.Context, names ...string) error {
	if err := r.takeTurn(ctx); err != nil {
		return err
	}
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
			err := results[i].err
			if broken, ok := errors.AsType[*brokenError](err); ok {
				r.setBroken(name, broken.err)
			} else if err != nil {
				return storeFailed("the store did not read the service "+name, err)
			} else {
				r.setBroken(name, nil)
				r.publish(name, results[i].record)
			}
			delete(r.doubtful, name)
		}
	}
	return nil
}

// setBroken says that a stored record cannot be read, or can. What was in force stays.
func (r *Registry) setBroken(name string, err error) {
	if err == nil && r.broken[name] == nil {
		return
	}
	r.mu.Lock()
	if err == nil {
		delete(r.broken, name)
	} else {
		r.broken[name] = err
	}
	r.mu.Unlock()
	r.settleIfWanted(name, nil, nil)
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
	if known := r.Stored(name); known != nil && record != nil && known.state == record.state && known.Changed.Equal(record.Changed) && known.Used.Equal(record.Used) {
		return
	}
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
	if next == nil || old != nil && old.InForce().Definition.Template != next.InForce().Definition.Template {
		maps.DeleteFunc(r.variants, func(_ string, v *variant) bool { return v.base == name })
	}
	r.mu.Unlock()
	r.tell(old, next)
	r.settleIfWanted(name, old, next)
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

// claim sets which hosts lead to a stored service. The store can have two services that
// claim a host: two Caddys with storages of their own have made them, or one goes back to
// a revision whose host was given to another one meanwhile. Then one whose newest revision
// has the host goes first, and after that the first one by name.
func (r *Registry) claim(name string, old, next *Record) {
	touched := make(map[string]bool)
	if old != nil && old.Origin == RunTime {
		for _, host := range old.hosts() {
			touched[host] = true
			r.claims[host] = slices.DeleteFunc(r.claims[host], func(n string) bool { return n == name })
		}
	}
	if next != nil {
		for _, host := range next.hosts() {
			touched[host] = true
			r.claims[host] = append(r.claims[host], name)
		}
	}
	for host := range touched {
		names := r.claims[host]
		if len(names) == 0 {
			delete(r.claims, host)
			delete(r.hosts, host)
			continue
		}
		slices.SortFunc(names, func(a, b string) int {
			return cmp.Or(cmp.Compare(r.rank(a, host), r.rank(b, host)), strings.Compare(a, b))
		})
		r.hosts[host] = names[0]
	}
}

// rank is 0 if the newest revision of a service has the host, and 1 if only the one in
// force has it.
func (r *Registry) rank(name, host string) int {
	if slices.Contains(r.live[name].Current().Definition.Hosts, host) {
		return 0
	}
	return 1
}
