package kubernetes

import (
	"errors"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/kubeaccess"
)

func init() {
	caddy.RegisterModule(new(Coordinator))
}

// Coordinator keeps what the Caddys of a cluster agree on in a ConfigMap of
// Kubernetes. It is made when the first Caddy comes. Caddy needs the rights to
// get and update it, and to create ConfigMaps.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Coordinator struct {
	// The namespace of the ConfigMap. Default: that of the context of the
	// kubeconfig, or, in a cluster, Caddy's own.
	Namespace string `json:"namespace,omitempty"`

	// The name of the ConfigMap. Default: `usher-` and the name of the cluster.
	Name string `json:"name,omitempty"`

	// The kubeconfig file. Default: the service account of the pod that Caddy
	// runs in, then the files that KUBECONFIG names, then ~/.kube/config.
	Kubeconfig string `json:"kubeconfig,omitempty"`

	// The context of the kubeconfig. Default: its current one.
	Context string `json:"context,omitempty"`

	plan *plan
}

// plan is a configuration after Provision. What is empty has its default.
type plan struct {
	namespace, name, kubeconfig, context string
}

// CaddyModule returns the Caddy module information.
func (*Coordinator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  coordinator.Namespace + ".kubernetes",
		New: func() caddy.Module { return new(Coordinator) },
	}
}

// Provision resolves and checks the configuration. It asks no cluster, and does
// not look for one.
func (c *Coordinator) Provision(caddy.Context) error {
	p := new(plan)
	resolve := caddy.NewReplacer()
	for _, f := range []struct {
		name, value string
		to          *string
	}{
		{"namespace", c.Namespace, &p.namespace},
		{"name", c.Name, &p.name},
		{"kubeconfig", c.Kubeconfig, &p.kubeconfig},
		{"context", c.Context, &p.context},
	} {
		var err error
		if *f.to, err = resolve.ReplaceOrErr(f.value, true, true); err != nil {
			return fmt.Errorf("kubernetes: %s: %w", f.name, err)
		}
	}
	err := kubeaccess.CheckNamespace(p.namespace)
	if err == nil && p.name != "" {
		err = checkName(p.name)
	}
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	c.plan = p
	return nil
}

// checkName refuses what no ConfigMap can be called.
func checkName(name string) error {
	if why := validation.IsDNS1123Subdomain(name); len(why) > 0 {
		return errors.New("name " + name + ": " + strings.Join(why, "; "))
	}
	return nil
}

// Open makes the coordinator of a cluster. It looks for the access to
// Kubernetes, and connects with the first call.
func (c *Coordinator) Open(cluster string) (coordinator.Coordinator, error) {
	s, err := c.OpenStore(cluster)
	if err != nil {
		return nil, err
	}
	return coordinator.Over(cluster, s), nil
}

// OpenStore makes what is below the coordinator, for the conformance suite.
func (c *Coordinator) OpenStore(cluster string) (coordinator.Store, error) {
	switch {
	case c.plan == nil:
		return nil, errors.New("kubernetes: the coordinator was opened before it was provisioned")
	case cluster == "":
		return nil, errors.New("kubernetes: the cluster has no name")
	}
	p := *c.plan
	if p.name == "" {
		p.name = "usher-" + cluster
		if err := checkName(p.name); err != nil {
			return nil, fmt.Errorf("kubernetes: the name of the cluster makes none for a ConfigMap, so give one: name <name>: %w", err)
		}
	}
	s, err := open(p)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: no usable configuration; looked at kubeconfig and context of the coordinator, the service account of the pod, KUBECONFIG, ~/.kube/config: %w", err)
	}
	return s, nil
}

// Interface guards.
var (
	_ caddy.Module       = (*Coordinator)(nil)
	_ caddy.Provisioner  = (*Coordinator)(nil)
	_ coordinator.Opener = (*Coordinator)(nil)
)
