package kubernetes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The controllers of the test's cluster: Deployments have one ReplicaSet,
// ReplicaSets and StatefulSets make and take pods as the real ones do. What
// the kubelet would do is up to the tests, but for pods that are deleted: they
// are gone at once, unless they linger.

// controllers sets up the controllers. Pods start as kubelet says; nil leaves
// them pending.
func (s *apiServer) controllers(kubelet func(o object)) {
	serial := 0
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reconcile = func(s *apiServer) {
		for range 3 {
			for _, name := range s.names("pods") {
				meta := s.objects["pods"][name]["metadata"].(object)
				if meta["deletionTimestamp"] != nil && child(meta, "annotations")["test/lingers"] == nil {
					s.remove("pods", name)
				}
			}
			s.runJobs(kubelet)
			for _, name := range s.names("deployments") {
				d := s.objects["deployments"][name]
				set := name + "-1"
				if s.objects["replicasets"][set] == nil {
					s.store("replicasets", owned(newObject("ReplicaSet", set), d, object{
						"spec": object{"replicas": float64(0), "selector": child(d, "spec")["selector"]},
					}))
				}
				rs := copyOf(s.objects["replicasets"][set])
				if want := number(child(d, "spec"), "replicas"); number(child(rs, "spec"), "replicas") != want && !s.hasSecondSet(name) {
					rs["spec"].(object)["replicas"] = float64(want)
					s.store("replicasets", rs)
				}
			}
			for _, name := range s.names("replicasets") {
				s.fill("replicasets", s.objects["replicasets"][name], kubelet, func(object) string {
					serial++
					return fmt.Sprintf("%s-p%d", name, serial)
				}, s.lastOfSet)
			}
			for _, name := range s.names("statefulsets") {
				o := s.objects["statefulsets"][name]
				s.fill("statefulsets", o, kubelet, func(object) string {
					for i := 0; ; i++ {
						if pod := name + "-" + strconv.Itoa(i); s.objects["pods"][pod] == nil {
							return pod
						}
					}
				}, lastOrdinal)
			}
			for _, name := range s.names("foos") {
				s.fill("foos", s.objects["foos"][name], kubelet, func(object) string {
					serial++
					return fmt.Sprintf("%s-foo%d", name, serial)
				}, func(all []object) object { return all[0] })
			}
		}
	}
}

// runJobs does what the controller of Jobs does: one pod for each, the end of the
// Job with that of the pod, and no pod without its Job. That a pod is gone it sees
// late, if the Job says so.
func (s *apiServer) runJobs(kubelet func(o object)) {
	for _, name := range s.names("jobs") {
		j := s.objects["jobs"][name]
		meta := j["metadata"].(object)
		pod := s.objects["pods"][name+"-x"]
		switch {
		case meta["deletionTimestamp"] != nil:
			s.remove("pods", name+"-x")
			s.remove("jobs", name)
		case len(children(child(j, "status"), "conditions")) > 0:
		case pod == nil && number(child(j, "status"), "active") > 0:
			if text(child(meta, "annotations"), "test/late") == "" {
				s.endJob(name, object{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it has failed"})
			}
		case pod == nil && text(child(meta, "annotations"), "test/quota") == "":
			template := child(child(j, "spec"), "template")
			p := owned(newObject("Pod", name+"-x"), j, object{"spec": child(copyOf(template), "spec"), "status": object{"phase": "Pending"}})
			p["metadata"].(object)["labels"] = child(child(copyOf(template), "metadata"), "labels")
			if kubelet != nil {
				kubelet(p)
			}
			s.store("pods", p)
			j = copyOf(j)
			merge(j, object{"status": object{"active": float64(1)}})
			s.store("jobs", j)
		case text(child(meta, "annotations"), "test/late") != "":
		case text(child(pod, "status"), "phase") == "Succeeded":
			s.endJob(name, object{"type": "Complete", "status": "True"})
		case text(child(pod, "status"), "phase") == "Failed":
			s.endJob(name, object{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it has failed"})
		}
	}
}

func (s *apiServer) endJob(name string, condition object) {
	j := copyOf(s.objects["jobs"][name])
	merge(j, object{"status": object{"conditions": []any{condition}}})
	s.store("jobs", j)
}

// cronJob adds a template of Jobs.
func (s *apiServer) cronJob(name string, spec object) {
	o := newObject("CronJob", name)
	o["apiVersion"] = "batch/v1"
	merge(o, object{"spec": object{"suspend": true, "jobTemplate": object{
		"metadata": object{"labels": object{"of": name}}, "spec": object{"template": object{"spec": object{"containers": []any{object{
			"name": "app", "ports": []any{object{"name": "http", "containerPort": float64(8080)}},
		}}}}},
	}}})
	merge(o["spec"].(object)["jobTemplate"].(object)["spec"].(object), spec)
	s.do(func() { s.store("cronjobs", o) })
}

func (s *apiServer) hasSecondSet(deployment string) bool {
	return s.objects["replicasets"][deployment+"-2"] != nil
}

func (s *apiServer) names(resource string) []string {
	return slices.Sorted(maps.Keys(s.objects[resource]))
}

// fill makes or takes the pods of a controller until the number is right.
func (s *apiServer) fill(resource string, o object, kubelet func(object), name func(object) string, last func([]object) object) {
	want := int(number(child(o, "spec"), "replicas"))
	if text(child(o["metadata"].(object), "annotations"), "test/quota") != "" {
		want = 0
	}
	for {
		living := s.podsOf(o)
		switch {
		case len(living) < want:
			labels := object{}
			maps.Copy(labels, child(child(child(o, "spec"), "selector"), "matchLabels"))
			p := owned(newObject("Pod", name(o)), o, object{
				"spec": object{"containers": []any{object{
					"name": "app", "ports": []any{object{"name": "http", "containerPort": float64(8080)}},
				}}},
				"status": object{"phase": "Pending"},
			})
			p["metadata"].(object)["labels"] = labels
			if kubelet != nil {
				kubelet(p)
			}
			s.store("pods", p)
		case len(living) > want:
			s.markDeleted("pods", nameOf(last(living)))
		default:
			return
		}
	}
}

// podsOf returns the pods of a controller that count.
func (s *apiServer) podsOf(o object) []object {
	var all []object
	for _, name := range s.names("pods") {
		p := s.objects["pods"][name]
		if ref := children(p["metadata"].(object), "ownerReferences"); len(ref) > 0 && ref[0]["uid"] == o["metadata"].(object)["uid"] &&
			p["metadata"].(object)["deletionTimestamp"] == nil && text(child(p, "status"), "phase") != "Failed" {
			all = append(all, p)
		}
	}
	return all
}

// lastOfSet is the pod that a ReplicaSet takes first: one that is not
// assigned, pending or not ready, then the cheapest, then the youngest.
func (s *apiServer) lastOfSet(all []object) object {
	key := func(o object) (int, int64) {
		rank := 3
		st := child(o, "status")
		ready := false
		for _, c := range children(st, "conditions") {
			ready = ready || c["type"] == "Ready" && c["status"] == "True"
		}
		switch {
		case text(child(o, "spec"), "nodeName") == "":
			rank = 0
		case st["phase"] != "Running":
			rank = 1
		case !ready:
			rank = 2
		}
		cost, _ := strconv.ParseInt(text(child(o["metadata"].(object), "annotations"), costKey), 10, 64)
		return rank, cost
	}
	return slices.MinFunc(all, func(a, b object) int {
		ra, ca := key(a)
		rb, cb := key(b)
		return cmp.Or(cmp.Compare(ra, rb), cmp.Compare(ca, cb), strings.Compare(nameOf(b), nameOf(a)))
	})
}

func lastOrdinal(all []object) object {
	return slices.MaxFunc(all, func(a, b object) int {
		return cmp.Compare(len(nameOf(a)), len(nameOf(b)))*2 + strings.Compare(nameOf(a), nameOf(b))
	})
}

func nameOf(o object) string { return o["metadata"].(object)["name"].(string) }

var uids = func() func() string {
	n := make(chan int, 1)
	n <- 0
	return func() string {
		i := <-n + 1
		n <- i
		return fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
	}
}()

func newObject(kind, name string) object {
	version := "apps/v1"
	switch kind {
	case "Pod", "Event":
		version = "v1"
	case "HorizontalPodAutoscaler":
		version = "autoscaling/v2"
	case "Foo":
		version = "example.com/v1"
	}
	return object{"apiVersion": version, "kind": kind, "metadata": object{
		"name": name, "namespace": "default", "uid": uids(),
		"creationTimestamp": time.Now().UTC().Format(time.RFC3339),
	}}
}

// owned returns o with a controller and more.
func owned(o, by, more object) object {
	merge(o, more)
	o["metadata"].(object)["ownerReferences"] = []any{object{
		"apiVersion": by["apiVersion"], "kind": by["kind"], "name": nameOf(by),
		"uid": by["metadata"].(object)["uid"], "controller": true,
	}}
	return o
}

// workload adds a workload of that many replicas.
func (s *apiServer) workload(kind, name string, replicas int) {
	o := newObject(kind, name)
	merge(o, object{"spec": object{
		"replicas": float64(replicas), "selector": object{"matchLabels": object{"app": name}},
		"template": object{"metadata": object{"labels": object{"app": name}}},
	}})
	s.do(func() { s.store(strings.ToLower(kind)+"s", o) })
}

// change changes an object as its kubelet or another client would.
func (s *apiServer) change(resource, name string, f func(o object)) {
	s.t.Helper()
	s.do(func() {
		o := s.objects[resource][name]
		if o == nil {
			s.t.Errorf("no %s/%s", resource, name)
			return
		}
		o = copyOf(o)
		f(o)
		s.store(resource, o)
	})
}

// scaleTo scales by hand.
func (s *apiServer) scaleTo(resource, name string, n int) {
	s.t.Helper()
	s.change(resource, name, func(o object) { o["spec"].(object)["replicas"] = float64(n) })
}

// running lets a pod run, at an address, ready or not.
func running(ip string, ready bool) func(object) {
	return func(o object) {
		condition := "False"
		if ready {
			condition = "True"
		}
		merge(o, object{
			"spec": object{"nodeName": "n1"},
			"status": object{
				"phase": "Running", "podIP": ip, "podIPs": []any{object{"ip": ip}},
				"conditions":        []any{object{"type": "Ready", "status": condition}, object{"type": "PodScheduled", "status": "True"}},
				"containerStatuses": []any{object{"name": "app", "restartCount": float64(0), "state": object{"running": object{"startedAt": time.Now().UTC().Format(time.RFC3339)}}}},
			},
		})
	}
}

// containerIs sets the status of the container of a pod.
func containerIs(status object) func(object) {
	status["name"] = "app"
	return func(o object) { o["status"].(object)["containerStatuses"] = []any{status} }
}

// livePods returns the names of the pods that are not on their way out.
func (s *apiServer) livePods() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, name := range s.names("pods") {
		if s.objects["pods"][name]["metadata"].(object)["deletionTimestamp"] == nil {
			all = append(all, name)
		}
	}
	return all
}

func (s *apiServer) replicas(resource, name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(number(child(s.objects[resource][name], "spec"), "replicas"))
}

func (s *apiServer) annotation(resource, name, key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return text(child(s.objects[resource][name]["metadata"].(object), "annotations"), key)
}
