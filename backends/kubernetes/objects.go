package kubernetes

import (
	"net"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// What is kept of an object: what Usher looks at. A namespace may have
// thousands of pods that are none of its business.

// A head is what all objects have.
type head struct {
	name, uid string
	version   uint64 // 0 if the cluster's resource versions are no numbers
	owner     owner
}

func (h head) identity() (uid string, version uint64) { return h.uid, h.version }

// owner is the controller of an object.
type owner struct{ kind, name, uid string }

// A pod is what is kept of a pod. It is never changed once it is made.
type pod struct {
	head
	labels     labels.Set
	created    time.Time
	deleting   bool
	phase      string
	reason     string // of its phase
	message    string
	ip         string
	node       string
	ready      bool
	scheduled  condition
	containers []container
}

// A container is one of the containers of a pod. Init containers are among
// them, those that go on running included.
type container struct {
	name   string
	init   bool
	ports  []port
	status containerStatus
}

type port struct {
	name   string
	number int
	tcp    bool
}

// containerStatus is what the kubelet says about a container.
type containerStatus struct {
	restarts   int
	waiting    *reasoned
	terminated *termination
	last       *termination
	started    time.Time // zero if it does not run
}

type reasoned struct{ reason, message string }

type condition struct {
	status string
	reasoned
}

// A termination says how a container ended.
type termination struct {
	reasoned
	exit, signal int64
	at           time.Time
}

// A replicaSet is what is kept of a ReplicaSet.
type replicaSet struct {
	head
	replicas int
	refusal  reasoned // why it cannot make pods
}

func newHead(u *unstructured.Unstructured) head {
	h := head{name: u.GetName(), uid: string(u.GetUID())}
	h.version, _ = strconv.ParseUint(u.GetResourceVersion(), 10, 64)
	for _, ref := range u.GetOwnerReferences() {
		if ref.Controller != nil && *ref.Controller {
			h.owner = owner{ref.Kind, ref.Name, string(ref.UID)}
		}
	}
	return h
}

func newPod(u *unstructured.Unstructured) *pod {
	p := &pod{
		head: newHead(u), labels: u.GetLabels(), created: u.GetCreationTimestamp().Time,
		deleting: u.GetDeletionTimestamp() != nil,
	}
	spec, status := child(u.Object, "spec"), child(u.Object, "status")
	p.node = text(spec, "nodeName")
	p.phase, p.reason, p.message = text(status, "phase"), text(status, "reason"), text(status, "message")
	p.ip = address(status, "podIP")
	if p.ip == "" {
		for _, one := range children(status, "podIPs") {
			p.ip = address(one, "ip")
			break
		}
	}
	for _, c := range children(status, "conditions") {
		switch text(c, "type") {
		case "Ready":
			p.ready = text(c, "status") == string(metav1.ConditionTrue)
		case "PodScheduled":
			p.scheduled = condition{text(c, "status"), reasoned{text(c, "reason"), text(c, "message")}}
		}
	}
	for _, kind := range []struct {
		spec, status string
		init         bool
	}{{"containers", "containerStatuses", false}, {"initContainers", "initContainerStatuses", true}} {
		statuses := make(map[string]containerStatus)
		for _, s := range children(status, kind.status) {
			statuses[text(s, "name")] = newContainerStatus(s)
		}
		for _, c := range children(spec, kind.spec) {
			one := container{name: text(c, "name"), init: kind.init, status: statuses[text(c, "name")]}
			if !kind.init || text(c, "restartPolicy") == "Always" {
				for _, pt := range children(c, "ports") {
					protocol := text(pt, "protocol")
					one.ports = append(one.ports, port{
						name: text(pt, "name"), number: int(number(pt, "containerPort")), tcp: protocol == "" || protocol == "TCP",
					})
				}
			}
			p.containers = append(p.containers, one)
		}
	}
	return p
}

func newContainerStatus(s map[string]any) containerStatus {
	st := containerStatus{restarts: int(number(s, "restartCount"))}
	state := child(s, "state")
	if w := child(state, "waiting"); w != nil {
		st.waiting = &reasoned{text(w, "reason"), text(w, "message")}
	}
	st.started = when(child(state, "running"), "startedAt")
	st.terminated = newTermination(child(state, "terminated"))
	st.last = newTermination(child(child(s, "lastState"), "terminated"))
	return st
}

func newTermination(t map[string]any) *termination {
	if t == nil {
		return nil
	}
	return &termination{reasoned{text(t, "reason"), text(t, "message")}, number(t, "exitCode"), number(t, "signal"), when(t, "finishedAt")}
}

func newReplicaSet(u *unstructured.Unstructured) *replicaSet {
	s := &replicaSet{head: newHead(u), replicas: int(number(child(u.Object, "spec"), "replicas"))}
	for _, c := range children(child(u.Object, "status"), "conditions") {
		if text(c, "type") == "ReplicaFailure" && text(c, "status") == string(metav1.ConditionTrue) {
			s.refusal = reasoned{text(c, "reason"), text(c, "message")}
		}
	}
	return s
}

// child, children, text, address, number and when look into objects. What is missing or of
// another type is empty.

func child(m map[string]any, key string) map[string]any {
	c, _ := m[key].(map[string]any)
	return c
}

func children(m map[string]any, key string) []map[string]any {
	list, _ := m[key].([]any)
	var all []map[string]any
	for _, one := range list {
		if c, ok := one.(map[string]any); ok {
			all = append(all, c)
		}
	}
	return all
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

// address returns an IP address. Requests are sent there, so nothing else is
// taken for one.
func address(m map[string]any, key string) string {
	s := text(m, key)
	if net.ParseIP(s) == nil {
		return ""
	}
	return s
}

func number(m map[string]any, key string) int64 {
	switch n := m[key].(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	}
	return 0
}

func when(m map[string]any, key string) time.Time {
	at, _ := time.Parse(time.RFC3339Nano, text(m, key))
	return at
}
