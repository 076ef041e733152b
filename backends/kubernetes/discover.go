package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discovery"
)

func init() {
	caddy.RegisterModule(new(Discoverer))
}

// Discoverer makes services of the workloads of a Kubernetes cluster that have
// the annotation `usher.caddyserver.com/enable: "true"`. The service's backend is
// that very workload. Further annotations with the same prefix say more: `name`
// (default: the workload's), `hosts`, `instances`, `concurrency`, `idle-timeout`,
// `start-timeout`, `drain-timeout`, `ready`, `port`, `scale`. Others have no
// effect, and are logged.
//
// Anyone who may annotate a workload in these namespaces can make a service of
// it, and claim hosts that the registry allows. The service ends when the workload
// or its annotation goes.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Discoverer struct {
	// The namespaces whose workloads may be services. Required, unless
	// `all_namespaces` is set.
	Namespaces []string `json:"namespaces,omitempty"`

	// Whether workloads of every namespace of the cluster may be services.
	// Default: false.
	AllNamespaces bool `json:"all_namespaces,omitempty"`

	// The kinds of workloads that are looked at: `deployment`, `statefulset`,
	// `replicaset`, `job` (CronJobs), or `<plural>.<version>.<group>`. Default:
	// `deployment` and `statefulset`.
	Resources []string `json:"resources,omitempty"`

	// The kubeconfig file. Default: the shared one of the app's `kubernetes`,
	// else as for a backend.
	Kubeconfig string `json:"kubeconfig,omitempty"`

	// The context of the kubeconfig. Default: the shared one of the app's
	// `kubernetes`, else its current one.
	Context string `json:"context,omitempty"`

	plan *discoveryPlan
}

// discoveryPlan is a configuration after Provision.
type discoveryPlan struct {
	spaces    []string // sorted; one "" for all
	kinds     []schema.GroupVersionResource
	access    connection
	reference connection // as it was written, for the backends of what is found
}

// scheme is how the keys are written.
var scheme = discovery.Scheme{Prefix: "usher.caddyserver.com/", Own: []string{ownerKey}}

// CaddyModule returns the Caddy module information.
func (*Discoverer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.discovery.kubernetes",
		New: func() caddy.Module { return new(Discoverer) },
	}
}

// Provision resolves and checks the configuration. It asks no cluster.
func (d *Discoverer) Provision(caddy.Context) error {
	p, err := d.resolve(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	d.plan = p
	return nil
}

// resolve returns the plan of d.
func (d *Discoverer) resolve(with *caddy.Replacer) (*discoveryPlan, error) {
	p := &discoveryPlan{reference: connection{d.Kubeconfig, d.Context}}
	text := func(what, value string) (string, error) {
		out, err := with.ReplaceOrErr(value, true, true)
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		return out, err
	}
	var err error
	if p.access.kubeconfig, err = text("kubeconfig", d.Kubeconfig); err != nil {
		return nil, err
	}
	if p.access.context, err = text("context", d.Context); err != nil {
		return nil, err
	}
	for _, written := range d.Namespaces {
		space, err := text("namespace", written)
		if err != nil {
			return nil, err
		}
		if space == "" {
			return nil, errors.New("namespace: the name is empty")
		}
		if err := kubeaccess.CheckNamespace(space); err != nil {
			return nil, err
		}
		p.spaces = append(p.spaces, space)
	}
	switch {
	case d.AllNamespaces && len(p.spaces) > 0:
		return nil, errors.New("give namespaces or all_namespaces, not both")
	case d.AllNamespaces:
		p.spaces = []string{""}
	case len(p.spaces) == 0:
		return nil, errors.New("discovery needs the namespaces whose workloads may be services: namespace <name...>, or all_namespaces")
	}
	slices.Sort(p.spaces)
	p.spaces = slices.Compact(p.spaces)
	kinds := d.Resources
	if len(kinds) == 0 {
		kinds = []string{"deployment", "statefulset"}
	}
	for _, kind := range kinds {
		gvr, err := parseKind(kind)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(p.kinds, gvr) {
			p.kinds = append(p.kinds, gvr)
		}
	}
	return p, nil
}

// parseKind reads a kind of workloads.
func parseKind(kind string) (schema.GroupVersionResource, error) {
	if strings.Contains(kind, "/") {
		return schema.GroupVersionResource{}, fmt.Errorf("resource %q: name the kind alone, for example deployment", kind)
	}
	w, err := parseWorkload(kind + "/any")
	if err != nil {
		return schema.GroupVersionResource{}, fmt.Errorf("resource %q is not deployment, statefulset, replicaset or job; write others as <plural>.<version>.<group>", kind)
	}
	return w.gvr, nil
}

// MergeDefaults fills in what the app's shared options for Kubernetes say about
// the way to the cluster. Their namespace is no permission to discover.
func (d *Discoverer) MergeDefaults(shared any) {
	b, ok := shared.(*Backend)
	if !ok {
		return
	}
	if d.Kubeconfig == "" {
		d.Kubeconfig = b.Kubeconfig
	}
	if d.Context == "" {
		d.Context = b.Context
	}
}

// Discover begins to watch. It does not wait for the cluster.
func (d *Discoverer) Discover(env scaler.DiscoverEnv) (scaler.Discovery, error) {
	if d.plan == nil {
		return nil, errors.New("the discovery of Kubernetes was begun before it was provisioned")
	}
	s := &search{plan: d.plan, env: env}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.watch = discovery.Start(env.Report, s.look, 0, s.end)
	s.watch.Poke()
	return s.watch, nil
}

// Fingerprint identifies what is found, and how the cluster is asked.
func (d *Discoverer) Fingerprint() string {
	p := d.plan
	text, err := json.Marshal([]any{p.spaces, p.kinds, p.access.key(), p.reference.kubeconfig, p.reference.context})
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("kubernetes: encoding a plan: %v", err))
	}
	return string(text)
}

// Redacted returns the configuration as it was written. It holds no secrets.
func (d *Discoverer) Redacted() any {
	shown := *d
	shown.plan = nil
	return &shown
}

// A search is a discovery that runs.
type search struct {
	plan   *discoveryPlan
	env    scaler.DiscoverEnv
	watch  *discovery.Watch
	ctx    context.Context
	cancel context.CancelFunc
	life   sync.WaitGroup

	cluster *cluster              // nil until the way to it is known; belongs to look
	mirrors []*mirror[*candidate] // one for each namespace and kind
}

// A candidate is what is kept of a workload: of most nothing but that there is
// one.
type candidate struct {
	head
	space       string
	created     time.Time
	annotations map[string]string // Usher's, if it is to be a service
}

func newCandidate(u *unstructured.Unstructured) *candidate {
	c := &candidate{head: newHead(u), space: u.GetNamespace(), created: u.GetCreationTimestamp().Time}
	annotations := u.GetAnnotations()
	if annotations[scheme.Enable()] != "true" || u.GetDeletionTimestamp() != nil {
		return c
	}
	c.annotations = make(map[string]string)
	for key, value := range annotations {
		if strings.HasPrefix(key, scheme.Prefix) && key != ownerKey {
			c.annotations[strings.Clone(key)] = strings.Clone(value)
		}
	}
	return c
}

// begin connects to the cluster and starts the watches.
func (s *search) begin() error {
	cl, err := joinCluster(s.plan.access, s.env.Logger())
	if err != nil {
		return err
	}
	s.cluster = cl
	for _, space := range s.plan.spaces {
		for _, kind := range s.plan.kinds {
			if kind == jobTemplates {
				kind = cronJobs
			}
			m := &mirror[*candidate]{gvr: kind, namespace: space, cluster: cl, convert: newCandidate, changed: s.changed, replaced: func(bool) { s.watch.Poke() }}
			s.mirrors = append(s.mirrors, m)
			s.life.Go(func() { m.run(s.ctx) })
		}
	}
	return nil
}

// changed has the watch look, if a service may have changed.
func (s *search) changed(before, after *candidate) {
	var was, is map[string]string
	if before != nil {
		was = before.annotations
	}
	if after != nil {
		is = after.annotations
	}
	if !maps.Equal(was, is) || before != nil && after != nil && before.uid != after.uid {
		s.watch.Poke()
	}
}

// look returns all workloads that are to be services.
func (s *search) look(context.Context) ([]scaler.Found, error) {
	if s.cluster == nil {
		if err := s.begin(); err != nil {
			return nil, err
		}
	}
	var found []scaler.Found
	var failed error
	for _, m := range s.mirrors {
		all, synced, trouble := m.all()
		switch {
		case trouble == nil && !synced:
			return nil, discovery.ErrUnknown
		case trouble != nil && !synced && trouble.Reason != scaler.ReasonForbidden:
			// Nothing is known of this part yet: a list without it would end
			// services that are there.
			return nil, trouble
		case trouble != nil:
			failed = trouble
		}
		if synced && found == nil {
			found = []scaler.Found{} // something is known
		}
		for _, c := range all {
			// A Deployment copies its annotations to its ReplicaSets.
			copied := m.gvr == replicaSets && c.owner.uid != ""
			if c.annotations != nil && !copied {
				found = append(found, s.found(m.gvr, c))
			}
		}
	}
	return found, failed
}

// found describes a workload.
func (s *search) found(gvr schema.GroupVersionResource, c *candidate) scaler.Found {
	if gvr == cronJobs {
		gvr = jobTemplates
	}
	w := workload{gvr, c.name}
	f := scaler.Found{Object: w.String() + " in namespace " + c.space, Name: discovery.Name(c.name), Since: c.created}
	port, _ := scheme.Read(&f, c.annotations)
	if err := checkPort(port); err != nil && f.Problem == "" {
		f.Problem = scheme.Key(discovery.KeyPort) + ": " + err.Error()
	}
	if f.Problem == "" {
		f.Backend = caddyconfig.JSONModuleObject(&Backend{
			Resource: w.String(), Namespace: c.space, Port: port,
			Kubeconfig: s.plan.reference.kubeconfig, Context: s.plan.reference.context,
		}, "type", "kubernetes", nil)
	}
	return f
}

// end ends the watches.
func (s *search) end() {
	s.cancel()
	s.life.Wait()
	if s.cluster != nil {
		s.cluster.leave()
	}
}

// Interface guards.
var (
	_ caddy.Module      = (*Discoverer)(nil)
	_ caddy.Provisioner = (*Discoverer)(nil)
	_ scaler.Discoverer = (*Discoverer)(nil)
)
