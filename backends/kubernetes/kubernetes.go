package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(new(Backend))
}

// Backend scales a workload of a Kubernetes cluster: a Deployment, a
// StatefulSet, or any other resource that has a `scale` subresource.
//
// The pods are found by the selector of the scale, and requests go to their
// IPs, so Caddy has to be able to reach these. The workload is there already;
// Usher changes its number of replicas, and stops the pods that it chooses.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Backend struct {
	// The workload, as `<resource>/<name>`: `deployment/web`,
	// `statefulset/db`, `replicaset/x`, or `<plural>.<version>.<group>/<name>`
	// for any other.
	//
	// `job/<name>` names a CronJob or, if there is none, a PodTemplate. Each
	// instance is then the pod of a Job that is made from that. The CronJob should
	// be suspended, or it makes Jobs by itself, too.
	Resource string `json:"resource,omitempty"`

	// The namespace of the workload. Default: that of the context of the
	// kubeconfig, or, in a cluster, Caddy's own.
	Namespace string `json:"namespace,omitempty"`

	// The port of the pods that serves: its number, or its name in the pod's
	// containers. Default: the first port that the pod declares.
	Port string `json:"port,omitempty"`

	// Of a `job/`: for how long a Job may run in all. Then the cluster ends it, with
	// what is inside. Default: what the template says.
	Deadline caddy.Duration `json:"deadline,omitempty"`

	// Of a `job/`: how long a Job that has ended stays in the cluster. Default: what
	// the template says, or else 1h.
	TTL caddy.Duration `json:"ttl,omitempty"`

	// The kubeconfig file. If it is missing, that fails the load, the first one
	// of a Caddy aside. Default: the service account of the pod that Caddy
	// runs in, then the files that KUBECONFIG names, then ~/.kube/config.
	Kubeconfig string `json:"kubeconfig,omitempty"`

	// The context of the kubeconfig. Default: its current one.
	Context string `json:"context,omitempty"`

	plan *plan
}

// plan is a configuration after Provision.
type plan struct {
	workload  workload
	namespace string // may be empty: the connection's
	port      string
	deadline  time.Duration // of Jobs; 0 is the template's
	ttl       time.Duration // of Jobs; 0 is the template's
	connection
}

// CaddyModule returns the Caddy module information.
func (*Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.kubernetes",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Provision resolves the configuration. It asks no cluster, and does not look
// for one.
func (b *Backend) Provision(caddy.Context) error {
	resolve := caddy.NewReplacer()
	resolved := [5]string{b.Resource, b.Namespace, b.Port, b.Kubeconfig, b.Context}
	for i, field := range [...]string{"resource", "namespace", "port", "kubeconfig", "context"} {
		value, err := resolve.ReplaceOrErr(resolved[i], true, true)
		if err != nil {
			return fmt.Errorf("kubernetes: %s: %w", field, err)
		}
		resolved[i] = value
	}
	if resolved[0] == "" {
		return errors.New("kubernetes: a resource is required, for example deployment/web")
	}
	w, err := parseWorkload(resolved[0])
	if err == nil {
		err = kubeaccess.CheckNamespace(resolved[1])
	}
	if err == nil {
		err = checkPort(resolved[2])
	}
	if err == nil {
		err = b.checkJobOptions(w)
	}
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	b.plan = &plan{
		deadline: time.Duration(b.Deadline), ttl: time.Duration(b.TTL),
		workload: w, namespace: resolved[1], port: resolved[2],
		connection: connection{kubeconfig: resolved[3], context: resolved[4]},
	}
	return nil
}

// checkJobOptions checks what only Jobs have.
func (b *Backend) checkJobOptions(w workload) error {
	for _, option := range []struct {
		name  string
		value caddy.Duration
	}{{"deadline", b.Deadline}, {"ttl", b.TTL}} {
		switch {
		case option.value == 0:
		case w.gvr != jobTemplates:
			return fmt.Errorf("%s is for job/<name> alone: %s has no Jobs", option.name, w)
		case option.value < caddy.Duration(time.Second):
			return fmt.Errorf("%s is %s, but at least 1s", option.name, time.Duration(option.value))
		}
	}
	return nil
}

// DefaultMaxRequests implements scaler.Limiter: a Job is for one request.
func (b *Backend) DefaultMaxRequests() int {
	if b.plan != nil && b.plan.workload.gvr == jobTemplates {
		return 1
	}
	return 0
}

// Check tells whether a kubeconfig that is named can be used. It asks no
// cluster. Where none is named, the place decides: a pod has its own.
func (b *Backend) Check() *scaler.Failure {
	if b.plan.kubeconfig == "" {
		return nil
	}
	if _, _, err := b.plan.load(); err != nil {
		return scaler.AsFailure(err)
	}
	return nil
}

// Open connects to the cluster, without waiting for it.
func (b *Backend) Open(env scaler.Env) (scaler.Scaler, error) {
	if b.plan == nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "backend not provisioned",
			Detail: "the kubernetes backend of " + env.Service + " was opened before it was provisioned",
		}
	}
	if b.plan.workload.gvr == jobTemplates {
		return openJobs(b, env)
	}
	return open(b.plan, env)
}

// Shared reports whether Caddys can share the instances: all of them see the
// same.
func (*Backend) Shared() bool { return true }

// Fingerprint identifies everything that shapes an instance.
func (b *Backend) Fingerprint() string {
	p := b.plan
	words := []string{p.workload.String(), p.namespace, p.port, p.kubeconfig, p.context}
	if p.workload.gvr == jobTemplates {
		words = append(words, p.deadline.String(), p.ttl.String())
	}
	text, err := json.Marshal(words)
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("kubernetes: encoding a plan: %v", err))
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Redacted returns the configuration as it was written. It holds no secrets:
// those are in the files that it names.
func (b *Backend) Redacted() any {
	shown := *b
	shown.plan = nil
	return &shown
}

// Interface guards.
var (
	_ caddy.Module      = (*Backend)(nil)
	_ caddy.Provisioner = (*Backend)(nil)
	_ scaler.Checker    = (*Backend)(nil)
	_ scaler.Backend    = (*Backend)(nil)
	_ scaler.Limiter    = (*Backend)(nil)
)
