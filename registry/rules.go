package registry

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// DefaultKeepRevisions is how many revisions of a service are kept.
const DefaultKeepRevisions = 10

// Rules are what the configuration in force says. They are not changed after Use. The
// functions may be called at any time and at the same time, and do not call the
// Registry; one that is nil says nothing.
type Rules struct {
	// The templates of the configuration, by name.
	Templates map[string]*Template

	// The templates that services may be made of, and the types of backends that whole
	// definitions may have.
	AllowTemplates, AllowBackends []string

	// How many services one owner may have; 0: no limit. Operators are not bound.
	OwnerLimit int

	// How long a service may be unused before it is deleted; 0: forever.
	Forget time.Duration

	// How many revisions of a service are kept, with the one in force. 0:
	// DefaultKeepRevisions.
	KeepRevisions int

	// The hosts that may be claimed: exact ones, or "*." and a domain, where "*" is one
	// label. Empty: any.
	Hosts []string

	// Configured says whether the configuration has a service of that name.
	Configured func(name string) bool

	// Check returns an error if the service cannot be made. It starts nothing.
	Check func(name string, service json.RawMessage) error

	// Mask returns the service with its secrets as "***". Texts that it leaves out are
	// taken for secrets.
	Mask func(service json.RawMessage) (json.RawMessage, error)

	// Unproven says whether the newest revision of a service has not run yet, so that one
	// before it is what the service goes back to. Such a revision counts as failed when a
	// further one takes its place.
	Unproven func(name string) bool

	// Evict ends an unused variant and returns true, or returns false because something
	// of it runs, or a request waits for it. See Registry.Variant.
	Evict func(variant string) bool
}

func (r *Rules) configured(name string) bool { return r.Configured != nil && r.Configured(name) }

func (r *Rules) unproven(name string) bool { return r.Unproven != nil && r.Unproven(name) }

func (r *Rules) keepRevisions() int {
	if r.KeepRevisions > 0 {
		return r.KeepRevisions
	}
	return DefaultKeepRevisions
}

// checkDefinition returns what is wrong with d by the rules, other services and limits
// left out, and the template that it is made of, if any.
func (r *Rules) checkDefinition(call Call, name string, d *Definition) error {
	if d.Service != nil {
		if !call.Operator {
			return refuse(Forbidden, "only operators may define a whole service; choose a template: %s", r.templateNames())
		}
		if kind := backendType(d.Service); !slices.Contains(r.AllowBackends, kind) {
			return refuse(Forbidden, "the registry does not allow services with backend %s", kind)
		}
	} else if _, err := r.template(d.Template); err != nil {
		return err
	}
	for _, host := range d.Hosts {
		if !hostAllowed(host, r.Hosts) {
			return refuse(Forbidden, "the host %s may not be claimed; the registry allows: %s", host, strings.Join(r.Hosts, ", "))
		}
	}
	service, err := r.resolve(d)
	if err != nil {
		return err
	}
	if r.Check == nil {
		return nil
	}
	if err := r.Check(name, service); err != nil {
		return refuse(Invalid, "the service cannot be made: %w", err)
	}
	return nil
}

// template returns an allowed template.
func (r *Rules) template(name string) (*Template, error) {
	t := r.Templates[name]
	if t == nil || !slices.Contains(r.AllowTemplates, name) {
		return nil, refuse(Invalid, "there is no template %q; choose: %s", name, r.templateNames())
	}
	return t, nil
}

func (r *Rules) templateNames() string {
	var names []string
	for _, name := range sortedKeys(r.Templates) {
		if slices.Contains(r.AllowTemplates, name) {
			names = append(names, name)
		}
	}
	if names == nil {
		return "the registry allows none"
	}
	return strings.Join(names, ", ")
}

// resolve returns the service that d describes.
func (r *Rules) resolve(d *Definition) (json.RawMessage, error) {
	if d.Service != nil {
		return d.Service, nil
	}
	t, err := r.template(d.Template)
	if err != nil {
		return nil, err
	}
	return t.Expand(d.Params)
}
