package registry

import (
	"context"
	"strings"
)

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
	if d, err = r.rules.Load().unmask(d, old); err != nil {
		return nil, nil, err
	}
	if err := d.checkForm(); err != nil {
		return nil, nil, err
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
		replaced := old
		if old != nil && !old.IsDeleted() && old.FellBack == nil && r.rules.Load().unproven(name) {
			// What serves is the one before. A new one that fails gives way to that.
			if left := old.failed("it was replaced before an instance of it was ready", call.Now); left.FellBack != nil {
				replaced = left
			}
		}
		record = nextRecord(replaced, name, owner, Revision{Definition: d, By: call.By, At: instant(call.Now)}, r.rules.Load().keepRevisions())
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
		return nil, refuse(Conflict, "the stored record of %s cannot be read: %w; an operator can delete it with If-Match: *", name, err)
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
		return r.makeRoom(rules.Templates[d.Template], d.Template, rules.Evict)
	}
	return nil
}

// makeRoom returns an error if there can be no more service of a template.
func (r *Registry) makeRoom(t *Template, template string, evict evictor) error {
	limit := t.maxServices
	for limit > 0 {
		r.mu.RLock()
		variants, full := r.room(template, limit)
		r.mu.RUnlock()
		if !full {
			return nil
		}
		// Evict is called without the lock: it takes those of the program.
		if !r.evict(variants, evict) {
			return refuse(TooMany, "there are %d services of template %s with the variants that requests have asked for, which is the limit", limit, template)
		}
	}
	return nil
}
