package hub

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddy-usher/usher/registry"
)

// The origins of services that are not of the configuration.
const (
	OriginRunTime    = "run_time"
	OriginDiscovered = "discovered"
)

// MadeView is what is shown of a service that was made while Caddy runs.
type MadeView struct {
	Name       string          `json:"name"`
	Origin     string          `json:"origin"`
	Source     string          `json:"source,omitempty"` // the object of a platform that it was found by
	Owner      string          `json:"owner,omitempty"`
	Revision   int             `json:"revision"`
	ETag       string          `json:"etag,omitempty"` // none of a discovered one
	Definition json.RawMessage `json:"definition"`     // secrets hidden
	By         string          `json:"by,omitempty"`   // who made the revision
	At         time.Time       `json:"at,omitzero"`

	// InForce is the revision of which instances are made, if the newest one could
	// not be started.
	InForce  int           `json:"in_force,omitempty"`
	FellBack *FellBackView `json:"fell_back,omitempty"`

	// Trouble says why the definition cannot be used. What the service had before
	// stays.
	Trouble string `json:"trouble,omitempty"`

	// Shadowed is true while the configuration has a service of that name, which
	// is the one in force.
	Shadowed bool `json:"shadowed,omitempty"`

	Deleted time.Time `json:"deleted,omitzero"` // it can be brought back for a day

	State string `json:"state,omitempty"` // of the running service

	// Replacing is true while instances of an earlier definition still take requests,
	// because those of this one are not ready yet.
	Replacing bool `json:"replacing,omitempty"`
}

// FellBackView says why a revision is not in force.
type FellBackView struct {
	Revision int       `json:"revision"` // the one that is not in force
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
}

// RevisionView is one revision of a service.
type RevisionView struct {
	Number     int             `json:"number"`
	By         string          `json:"by,omitempty"`
	At         time.Time       `json:"at"`
	Definition json.RawMessage `json:"definition"` // secrets hidden
}

// FindingView is how the search for services on a platform goes.
type FindingView struct {
	Platform string         `json:"platform"`
	Trouble  string         `json:"trouble,omitempty"` // why it cannot be asked
	Rejected []RejectedView `json:"rejected,omitempty"`
}

// RejectedView is an object of a platform that is no service although its labels say
// so, and why.
type RejectedView struct {
	Object string `json:"object"`
	Name   string `json:"name,omitempty"` // the service that it would be
	Reason string `json:"reason"`
}

// Made returns what is shown of a service; nil if there is none of that name that
// was made while Caddy runs, or was deleted within the last day.
func (h *Hub) Made(name string) (*MadeView, error) {
	k := h.keeper.Load()
	if k == nil || h.Registry() == nil {
		return nil, nil
	}
	r := k.registry.Find(name)
	if r == nil {
		return nil, nil
	}
	return k.view(r)
}

// AllMade returns what is shown of all services that were made while Caddy runs, by
// name; of those of one owner, if one is given.
func (h *Hub) AllMade(owner string) ([]*MadeView, error) {
	k := h.keeper.Load()
	all := []*MadeView{}
	if k == nil || h.Registry() == nil {
		return all, nil
	}
	for _, r := range k.registry.List() {
		if owner != "" && r.Owner != owner {
			continue
		}
		v, err := k.view(r)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (k *keeper) view(r *registry.Record) (*MadeView, error) {
	// Hiding secrets costs making the backend, for each revision.
	newest := *r
	newest.Revisions = r.Revisions[len(r.Revisions)-1:]
	rev := k.registry.Shown(&newest).Current()
	v := &MadeView{
		Name: r.Name, Origin: originOf(r), Source: r.Source, Owner: r.Owner, Revision: rev.Number, ETag: r.ETag(),
		By: rev.By, At: rev.At, Deleted: r.Deleted,
	}
	if r.Origin == registry.Discovered {
		v.ETag = ""
	}
	if r.FellBack != nil {
		v.InForce, v.FellBack = r.InForce().Number, fellBackView(r)
	}
	var err error
	if v.Definition, err = json.Marshal(rev.Definition); err != nil {
		return nil, err
	}
	k.working.Lock()
	m := k.made[r.Name]
	var s *Service
	if m != nil {
		v.Shadowed, s = m.shadowed, m.service
		if m.trouble != nil {
			v.Trouble = m.trouble.Error()
		}
	}
	k.working.Unlock()
	if s != nil && s.isActive() && !v.Shadowed {
		v.State, v.Replacing = string(s.Loop.Status().State), s.Loop.Replacing()
	}
	return v, nil
}

// fellBackView returns nil if the newest revision is in force.
func fellBackView(r *registry.Record) *FellBackView {
	if r.FellBack == nil {
		return nil
	}
	return &FellBackView{Revision: r.FellBack.Revision, Reason: r.FellBack.Reason, At: r.FellBack.At}
}

// UnusedView is a service that was made while Caddy runs and does not run as its
// definition says.
type UnusedView struct {
	Name     string `json:"name"`
	Origin   string `json:"origin"`
	Owner    string `json:"owner,omitempty"`
	Revision int    `json:"revision"`

	// Trouble says why its definition cannot be used. Shadowed is true if the
	// configuration has a service of that name.
	Trouble  string `json:"trouble,omitempty"`
	Shadowed bool   `json:"shadowed,omitempty"`
}

// unused returns the services that do not run as their definitions say, by name. The
// lock is held.
func (k *keeper) unused() []UnusedView {
	list := []UnusedView{}
	for _, name := range slices.Sorted(maps.Keys(k.made)) {
		m := k.made[name]
		if m.variant || m.trouble == nil && !m.shadowed {
			continue
		}
		v := UnusedView{Name: name, Origin: originOf(m.record), Owner: m.record.Owner, Revision: m.record.Current().Number, Shadowed: m.shadowed}
		if m.trouble != nil {
			v.Trouble = m.trouble.Error()
		}
		list = append(list, v)
	}
	return list
}

func originOf(r *registry.Record) string {
	if r.Origin == registry.Discovered {
		return OriginDiscovered
	}
	return OriginRunTime
}

// Revisions returns what is kept of the definitions of a service, newest first; nil
// if there is none of that name.
func (h *Hub) Revisions(name string) ([]RevisionView, error) {
	k := h.keeper.Load()
	if k == nil || h.Registry() == nil {
		return nil, nil
	}
	r := k.registry.Find(name)
	if r == nil {
		return nil, nil
	}
	r = k.registry.Shown(r)
	list := make([]RevisionView, 0, len(r.Revisions))
	for _, rev := range slices.Backward(r.Revisions) {
		d, err := json.Marshal(rev.Definition)
		if err != nil {
			return nil, err
		}
		list = append(list, RevisionView{Number: rev.Number, By: rev.By, At: rev.At, Definition: d})
	}
	return list, nil
}

// RegistryView is how the registry is.
type RegistryView struct {
	// Loaded is false until the stored services could be read.
	Loaded bool `json:"loaded"`

	Discover []FindingView `json:"discover"`

	// Unreadable are stored services that cannot be read. They are left as they are.
	Unreadable []RejectedView `json:"unreadable,omitempty"`

	// Unused are the services that do not run as their definitions say, by name.
	Unused []UnusedView `json:"unused"`
}

// RegistryView says how the registry is; nil if the configuration has none.
func (h *Hub) RegistryView() *RegistryView {
	k := h.keeper.Load()
	if k == nil || h.Registry() == nil {
		return nil
	}
	v := &RegistryView{Loaded: k.registry.Loaded(), Discover: []FindingView{}}
	rejected := make(map[string][]RejectedView)
	for _, r := range k.registry.Rejected() {
		rejected[r.Source] = append(rejected[r.Source], RejectedView{r.Object, r.Name, r.Reason})
	}
	v.Unreadable = rejected[registry.SourceStorage]
	k.working.Lock()
	defer k.working.Unlock()
	for _, name := range slices.Sorted(maps.Keys(k.finding)) {
		f := FindingView{Platform: name, Rejected: rejected[name]}
		if t := k.finding[name].trouble; t != nil {
			f.Trouble = t.Error()
		}
		v.Discover = append(v.Discover, f)
	}
	v.Unused = k.unused()
	return v
}

// addOrigin says where a service comes from, if not from the configuration.
func (s *Service) addOrigin(sum *ServiceSummary) {
	k := s.Hub.keeper.Load()
	if k == nil {
		return
	}
	k.working.Lock()
	defer k.working.Unlock()
	m := k.made[s.Name]
	if m == nil || m.shadowed || m.service != s {
		return
	}
	sum.Origin, sum.Owner, sum.Revision, sum.FellBack = originOf(m.record), m.record.Owner, m.revision, fellBackView(m.record)
	if m.trouble != nil {
		sum.Trouble = m.trouble.Error()
	}
}

// mask hides the secrets of a service: what its backend and its readiness check hide
// when they are shown. Of one that cannot be provisioned now, everything is hidden
// that its backend says.
func (k *keeper) mask(raw json.RawMessage) (json.RawMessage, error) {
	var s ServiceConfig
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	var given, shown any
	if err := json.Unmarshal(raw, &given); err != nil {
		return nil, err
	}
	if m, err := k.masked(s); err == nil {
		if err := json.Unmarshal(m, &shown); err != nil {
			return nil, err
		}
	} else {
		shown = map[string]any{"backend": hiddenSecret, "ready": hiddenSecret}
	}
	return json.Marshal(hide(given, shown))
}

// masked is how the service is shown with all its options.
func (k *keeper) masked(s ServiceConfig) (json.RawMessage, error) {
	k.working.Lock()
	defer k.working.Unlock()
	d, err := NewDefinition(k.context(), s, "registry", make(map[string]*Options))
	if err != nil {
		return nil, err
	}
	defer cleanUp(d)
	return d.Shown()
}

// hiddenSecret is shown in place of a secret.
const hiddenSecret = "***"

// hide returns given with *** wherever shown has it. Keys are compared as the
// readers of options and headers do, whatever their case.
func hide(given, shown any) any {
	switch g := given.(type) {
	case map[string]any:
		s, ok := shown.(map[string]any)
		if !ok {
			break
		}
		for key, value := range g {
			for name, what := range s {
				if strings.EqualFold(name, key) {
					g[key] = hide(value, what)
				}
			}
		}
		return g
	case []any:
		s, ok := shown.([]any)
		if !ok {
			break
		}
		if slices.Contains(s, any(hiddenSecret)) {
			shown = hiddenSecret // there may be more of them than are shown
			break
		}
		for i, value := range g {
			if i < len(s) {
				g[i] = hide(value, s[i])
			}
		}
		return g
	}
	if shown == hiddenSecret {
		return hideAll(given)
	}
	return given
}

// hideAll hides every text in a value, but for the type of a backend.
func hideAll(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if key != "type" {
				v[key] = hideAll(inner)
			}
		}
		return v
	case []any:
		for i, inner := range v {
			v[i] = hideAll(inner)
		}
		return v
	case string:
		return hiddenSecret
	}
	return value
}
