package kubernetes

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// A workload is a resource that has a scale, or of which Jobs are made, by name.
type workload struct {
	gvr  schema.GroupVersionResource
	name string
}

// The resources that this package knows by heart. Asking the cluster for all
// that it has would need the typed clients, and a network before anything runs.
var (
	deployments  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	statefulSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"}
	replicaSets  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	pods         = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	events       = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	jobTemplates = schema.GroupVersionResource{Resource: "job"} // a CronJob, or a PodTemplate
	autoscalers  = schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}
)

var known = map[string]schema.GroupVersionResource{
	"deployment": deployments, "deployments": deployments, "deploy": deployments,
	"statefulset": statefulSets, "statefulsets": statefulSets, "sts": statefulSets,
	"replicaset": replicaSets, "replicasets": replicaSets, "rs": replicaSets,
	"job": jobTemplates,
}

// parseWorkload reads <resource>/<name>.
func parseWorkload(text string) (workload, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || kind == "" || name == "" {
		return workload{}, fmt.Errorf("resource %q: write <resource>/<name>, for example deployment/web", text)
	}
	if why := validation.IsDNS1123Subdomain(name); len(why) > 0 {
		return workload{}, fmt.Errorf("resource %q: %s is no name of a resource: %s", text, name, strings.Join(why, "; "))
	}
	kind = strings.ToLower(kind)
	if gvr, ok := known[kind]; ok {
		return workload{gvr, name}, nil
	}
	parts := strings.SplitN(kind, ".", 3)
	if len(parts) != 3 || parts[0] == "" || parts[2] == "" || !strings.HasPrefix(parts[1], "v") {
		return workload{}, fmt.Errorf("resource %q: %s is not deployment, statefulset, replicaset or job; write others as <plural>.<version>.<group>, for example foos.v1.example.com/%s", text, kind, name)
	}
	return workload{schema.GroupVersionResource{Resource: parts[0], Version: parts[1], Group: parts[2]}, name}, nil
}

// String returns the workload as people write it.
func (w workload) String() string {
	switch w.gvr {
	case deployments:
		return "deployment/" + w.name
	case statefulSets:
		return "statefulset/" + w.name
	case replicaSets:
		return "replicaset/" + w.name
	case jobTemplates:
		return "job/" + w.name
	}
	return w.gvr.Resource + "." + w.gvr.Version + "." + w.gvr.Group + "/" + w.name
}

// needsReplicaSets tells whether the ReplicaSets of the namespace have to be
// watched to know the pods of w and what keeps them from being made.
func (w workload) needsReplicaSets() bool { return w.gvr == deployments || w.gvr == replicaSets }

// checkPort refuses what can be neither a number nor a name of a port.
func checkPort(port string) error {
	if port == "" || len(validation.IsValidPortName(port)) == 0 {
		return nil
	}
	if n, ok := portNumber(port); ok {
		if n < 1 || n > 65535 {
			return fmt.Errorf("port %s: a number is between 1 and 65535", port)
		}
		return nil
	}
	return fmt.Errorf("port %q is neither a number nor the name of a container's port (at most 15 of a-z, 0-9 and -, a letter among them)", port)
}

// portNumber returns the number that port is, if it is one. One that is too
// large to be a port is -1.
func portNumber(port string) (int, bool) {
	n := 0
	for _, c := range port {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			n = 65536
		}
	}
	return n, port != ""
}
