//go:build linux

package kube

import "time"

// A Pod is what the tests want to know of one.
type Pod struct {
	Metadata struct {
		Name              string
		UID               string
		Labels            map[string]string
		Annotations       map[string]string
		DeletionTimestamp *time.Time
		ResourceVersion   string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase             string
		PodIP             string
		Conditions        []Condition
		ContainerStatuses []struct{ RestartCount int }
	}
}

// A Condition is one of many kinds of object.
type Condition struct {
	Type    string
	Status  string
	Reason  string
	Message string
}

// Ready tells whether the kubelet takes the pod for ready.
func (p Pod) Ready() bool { return conditionTrue(p.Status.Conditions, "Ready") }

// Going tells whether the pod is being deleted.
func (p Pod) Going() bool { return p.Metadata.DeletionTimestamp != nil }

// Restarts counts how often containers of the pod were started again.
func (p Pod) Restarts() int {
	n := 0
	for _, s := range p.Status.ContainerStatuses {
		n += s.RestartCount
	}
	return n
}

func conditionTrue(conditions []Condition, kind string) bool {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status == "True"
		}
	}
	return false
}
