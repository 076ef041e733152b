package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Found is an object of a platform that says by its labels that it is a service.
type Found struct {
	// Object names it for people: "deployment/web in namespace apps".
	Object string

	// The name of the service, unless Labels have another one.
	Name string

	// What the labels say, by keys without prefix: name, hosts, instances, concurrency,
	// idle-timeout, start-timeout, drain-timeout, ready and scale.
	Labels map[string]string

	// Keys that have no effect. They are not of the registry's concern.
	Ignored []string

	// The backend for this very object, with its type.
	Backend json.RawMessage

	// When the object was created. Of two that claim a name or a host, the older one has
	// it.
	Since time.Time

	// Why the object cannot be a service as it is; empty: it can.
	Problem string
}

// Rejected is what is no service, and why.
type Rejected struct {
	Source string // as in SetFound; SourceStorage for a stored record that cannot be read
	Object string // as in Found; empty for a stored record
	Name   string // the service that it would be
	Reason string // for people: what is wrong and what to change
}

// SourceStorage is the Source of stored records that are rejected.
const SourceStorage = "storage"

// foundList is what a source has found.
type foundList struct {
	backend    string
	candidates []*candidate
}

// candidate is a found object and the service that it would be.
type candidate struct {
	source  string
	found   Found
	name    string
	d       Definition
	problem string
}

// SetFound sets what a source has found: the whole list, which takes the place of the one
// before. All of it has a backend of that type. An empty list ends the source.
//
// Names and hosts belong to the configuration first, then to stored services, then to the
// object that was created first. Objects that get no service are in Rejected. SetFound
// keeps found, which does not change any more.
func (r *Registry) SetFound(source, backend string, found []Found) {
	r.turn <- struct{}{}
	defer r.endTurn()
	rules := r.rules.Load()
	before := make(map[string]*candidate)
	if list := r.found[source]; list != nil && list.backend == backend {
		for _, c := range list.candidates {
			before[c.found.Object] = c
		}
	}
	list := &foundList{backend: backend}
	for _, f := range found {
		c, ok := before[f.Object]
		if !ok || !c.found.equal(f) {
			c = newCandidate(rules, source, backend, f)
		}
		list.candidates = append(list.candidates, c)
	}
	if r.found[source] = list; len(found) == 0 {
		delete(r.found, source)
	}
	r.settle()
}

func (f Found) equal(other Found) bool {
	return f.Name == other.Name && f.Problem == other.Problem && f.Since.Equal(other.Since) &&
		maps.Equal(f.Labels, other.Labels) && bytes.Equal(f.Backend, other.Backend)
}

// newCandidate checks what can be told of an object alone.
func newCandidate(rules *Rules, source, backend string, f Found) *candidate {
	c := &candidate{source: source, found: f, name: cmp.Or(strings.TrimSpace(f.Labels["name"]), f.Name)}
	if f.Problem != "" {
		c.problem = f.Problem
		return c
	}
	err := CheckName(c.name)
	if err == nil {
		c.d, err = labelled(backend, f)
	}
	if err == nil && rules.Check != nil {
		err = rules.Check(c.name, c.d.Service)
	}
	if err != nil {
		c.problem = err.Error()
	}
	return c
}

// settle gives names and hosts to found objects, and puts what changes in force.
func (r *Registry) settle() {
	rules := r.rules.Load()
	var all []*candidate
	r.wanted = make(map[string]bool)
	for _, list := range r.found {
		all = append(all, list.candidates...)
		for _, c := range list.candidates {
			r.wanted[c.name] = true
			for _, host := range c.d.Hosts {
				r.wanted[host] = true
			}
		}
	}
	slices.SortFunc(all, func(a, b *candidate) int {
		return cmp.Or(a.found.Since.Compare(b.found.Since), strings.Compare(a.source, b.source), strings.Compare(a.found.Object, b.found.Object))
	})
	next := make(map[string]*Record)
	hosts := make(map[string]string)
	var rejected []Rejected
	for _, c := range all {
		reason := cmp.Or(c.problem, r.occupied(rules, c, next, hosts))
		if reason != "" {
			rejected = append(rejected, Rejected{c.source, c.found.Object, c.name, reason})
			continue
		}
		next[c.name] = c.record(r.live[c.name])
		for _, host := range c.d.Hosts {
			hosts[host] = c.name
		}
	}
	r.putFound(next, hosts, rejected)
}

// settleIfWanted settles if a found object may get or lose a name or a host by a change of
// a stored service.
func (r *Registry) settleIfWanted(name string, old, next *Record) {
	wanted := r.wanted[name]
	for _, record := range [...]*Record{old, next} {
		if record != nil {
			wanted = wanted || slices.ContainsFunc(record.hosts(), func(host string) bool { return r.wanted[host] })
		}
	}
	if wanted {
		r.settle()
	}
}

// occupied returns why a candidate cannot have its name or its hosts, or "".
func (r *Registry) occupied(rules *Rules, c *candidate, next map[string]*Record, hosts map[string]string) string {
	if rules.configured(c.name) {
		return fmt.Sprintf("the configuration has a service %s; choose another name", c.name)
	}
	if stored := r.live[c.name]; stored != nil && stored.Origin == RunTime || r.broken[c.name] != nil {
		return fmt.Sprintf("the service %s was made at run time; choose another name", c.name)
	}
	if other := next[c.name]; other != nil {
		return fmt.Sprintf("%s is the service %s already; choose another name", other.Source, c.name)
	}
	for _, host := range c.d.Hosts {
		if !hostAllowed(host, rules.Hosts) {
			return fmt.Sprintf("the host %s may not be claimed; the registry allows: %s", host, strings.Join(rules.Hosts, ", "))
		}
		if names := r.claims[host]; len(names) > 0 {
			return fmt.Sprintf("the host %s belongs to the service %s", host, names[0])
		}
		if other := hosts[host]; other != "" {
			return fmt.Sprintf("the host %s belongs to the service %s", host, other)
		}
	}
	return ""
}

// record returns the service of a candidate: old, if that says the same.
func (c *candidate) record(old *Record) *Record {
	source := c.source + ": " + c.found.Object
	rev := Revision{Number: 1, Definition: c.d, By: source, At: instant(c.found.Since)}
	if old != nil && old.Origin == Discovered && old.Source == source {
		if old.Current().Definition.equal(&c.d) {
			return old
		}
		rev.Number = old.Current().Number + 1
	}
	return (&Record{Name: c.name, Revisions: []Revision{rev}, Origin: Discovered, Source: source, Changed: rev.At}).sealed()
}

// putFound puts discovered services in force, in the place of those before.
func (r *Registry) putFound(next map[string]*Record, hosts map[string]string, rejected []Rejected) {
	type pair struct{ old, next *Record }
	var gone []string
	for name, old := range r.live {
		if old.Origin == Discovered && next[name] == nil {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	var changes []pair
	for _, name := range gone {
		changes = append(changes, pair{r.live[name], nil})
	}
	for _, name := range sortedKeys(next) {
		if old := r.live[name]; old != next[name] {
			changes = append(changes, pair{old, next[name]})
		}
	}
	r.mu.Lock()
	for _, c := range changes {
		if c.old != nil {
			delete(r.live, c.old.Name)
		}
		if c.next != nil {
			r.live[c.next.Name] = c.next
		}
	}
	for host := range r.foundHosts {
		if len(r.claims[host]) == 0 {
			delete(r.hosts, host)
		}
	}
	maps.Copy(r.hosts, hosts)
	r.foundHosts, r.rejected = hosts, rejected
	r.mu.Unlock()
	for _, c := range changes {
		r.tell(c.old, c.next)
	}
}

// Rejected returns what is no service, by name: found objects whose labels are wrong, or
// whose name or host is taken, and stored records that cannot be read.
func (r *Registry) Rejected() []Rejected {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := slices.Clone(r.rejected)
	for name, err := range r.broken {
		all = append(all, Rejected{Source: SourceStorage, Name: name, Reason: "the stored record cannot be read: " + err.Error()})
	}
	sort.SliceStable(all, func(i, k int) bool {
		a, b := all[i], all[k]
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Source, b.Source), strings.Compare(a.Object, b.Object)) < 0
	})
	return all
}

// labelled returns the definition of a found object.
func labelled(backend string, f Found) (Definition, error) {
	value, err := parse(f.Backend)
	if err != nil {
		return Definition{}, refuse(Invalid, "its backend is not valid JSON: %w", err)
	}
	object, ok := value.(map[string]any)
	if !ok || object["type"] != backend {
		return Definition{}, refuse(Invalid, "its backend is not of type %s", backend)
	}
	service := map[string]any{"backend": object}
	var d Definition
	for _, key := range sortedKeys(f.Labels) {
		text := strings.TrimSpace(f.Labels[key])
		switch key {
		case "name":
			continue
		case "hosts":
			if d.Hosts, err = hostsLabel(text); err != nil {
				return Definition{}, fmt.Errorf("%s: %w", key, err)
			}
			continue
		}
		read, ok := labels[key]
		if !ok {
			return Definition{}, refuse(Invalid, "%q is no key of Usher", key)
		}
		option, err := read(text)
		if err != nil {
			return Definition{}, fmt.Errorf("%s is %q: %w", key, f.Labels[key], err)
		}
		service[strings.ReplaceAll(key, "-", "_")] = option
	}
	if d.Service, err = serviceField(service); err != nil {
		return Definition{}, err
	}
	return d, d.checkForm()
}

func hostsLabel(text string) ([]string, error) {
	var hosts []string
	for host := range strings.SplitSeq(text, ",") {
		hosts = append(hosts, strings.TrimSpace(host))
	}
	return canonicalHosts(hosts)
}

// labels are the keys that set an option of the service, and how their values are read.
// No key says what runs, as whom, or where: that is the object itself.
var labels = map[string]func(text string) (any, error){
	"instances":     instancesLabel,
	"concurrency":   concurrencyLabel,
	"idle-timeout":  func(text string) (any, error) { return durationLabel(text, "off") },
	"start-timeout": func(text string) (any, error) { return durationLabel(text, "") },
	"drain-timeout": func(text string) (any, error) { return durationLabel(text, "") },
	"ready":         readyLabel,
	"scale":         scaleLabel,
}

func instancesLabel(text string) (any, error) {
	words := strings.Fields(text)
	if len(words) < 1 || len(words) > 2 {
		return nil, refuse(Invalid, "it is the greatest number of instances, or the least and the greatest")
	}
	bounds := make(map[string]any)
	for i, key := range [...]string{"max", "min"} {
		if i == len(words) {
			break
		}
		n, err := strconv.ParseUint(words[len(words)-1-i], 10, 16)
		if err != nil {
			return nil, refuse(Invalid, "'%s' is not a number of instances", words[len(words)-1-i])
		}
		if n > 0 {
			bounds[key] = json.Number(strconv.FormatUint(n, 10))
		}
	}
	return bounds, nil
}

func concurrencyLabel(text string) (any, error) {
	if text == "unlimited" {
		return text, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return nil, refuse(Invalid, "it is a positive number or 'unlimited'")
	}
	return json.Number(strconv.FormatUint(n, 10)), nil
}

func durationLabel(text, word string) (any, error) {
	if word != "" && text == word {
		return text, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return nil, refuse(Invalid, "it is a duration such as 90s or 5m")
	}
	return d.String(), nil
}

func readyLabel(text string) (any, error) {
	check, path, _ := strings.Cut(text, " ")
	path = strings.TrimSpace(path)
	switch {
	case check == "http" && path == "", check == "tcp" && path == "", check == "platform" && path == "":
		return map[string]any{"check": check}, nil
	case check == "http" && strings.HasPrefix(path, "/") && !strings.ContainsAny(path, " {}\\") && checkValue(path) == nil:
		return map[string]any{"check": check, "path": path}, nil
	}
	return nil, refuse(Invalid, "it is 'tcp', 'platform', 'http' or 'http' with a path")
}

var policyName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,30}$`)

func scaleLabel(text string) (any, error) {
	if !policyName.MatchString(text) {
		return nil, refuse(Invalid, "it is the name of a policy, such as queue or adaptive")
	}
	return map[string]any{"policy": text}, nil
}
