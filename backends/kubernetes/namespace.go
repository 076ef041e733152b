package kubernetes

import (
	"context"
	"sync"

	"github.com/caddy-usher/usher/scaler"
)

// A namespace is what is watched in one namespace of one cluster, for all
// services that live there.
type namespace struct {
	cluster *cluster
	name    string
	refs    int // guarded by the cluster's mu

	pods *mirror[*pod]
	sets *mirror[*replicaSet]
	jobs *mirror[*job]

	mu        sync.Mutex
	members   map[*runner]bool
	observers map[*observation]bool
	ofJobs    map[*jobs]bool
	jobsOn    bool // the watch of Jobs
	begun     bool // the watch of pods
	setsOn    bool // the watch of ReplicaSets

	scaled autoscaled

	ctx    context.Context
	cancel context.CancelFunc
	life   sync.WaitGroup
}

// join returns the namespace of that name. Every join needs a leave.
func (cl *cluster) join(name string) *namespace {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	ns := cl.namespaces[name]
	if ns == nil {
		ns = &namespace{cluster: cl, name: name, members: make(map[*runner]bool), observers: make(map[*observation]bool), ofJobs: make(map[*jobs]bool)}
		ns.ctx, ns.cancel = context.WithCancel(cl.ctx)
		ns.pods = &mirror[*pod]{
			gvr: pods, namespace: name, cluster: cl, convert: newPod, changed: ns.podChanged, replaced: ns.everything,
		}
		ns.sets = &mirror[*replicaSet]{
			gvr: replicaSets, namespace: name, cluster: cl, convert: newReplicaSet, changed: ns.setChanged, replaced: ns.everything,
		}
		ns.jobs = &mirror[*job]{
			gvr: jobsResource, namespace: name, cluster: cl, convert: newJob, changed: ns.jobChanged, replaced: ns.everything,
		}
		cl.namespaces[name] = ns
	}
	ns.refs++
	return ns
}

// leave gives the namespace back. The last one to leave ends its watches.
func (ns *namespace) leave() {
	cl := ns.cluster
	cl.mu.Lock()
	ns.refs--
	last := ns.refs == 0
	if last {
		delete(cl.namespaces, ns.name)
	}
	cl.mu.Unlock()
	if last {
		ns.cancel()
		ns.life.Wait()
	}
}

// subscribe lets r know what changes, and begins to watch what it needs.
func (ns *namespace) subscribe(r *runner) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.members[r] = true
	ns.watchPods()
	if r.plan.workload.needsReplicaSets() && !ns.setsOn {
		ns.setsOn = true
		ns.life.Go(func() { ns.sets.run(ns.ctx) })
	}
}

// watchPods begins to watch the pods. The lock is held.
func (ns *namespace) watchPods() {
	if !ns.begun {
		ns.begun = true
		ns.life.Go(func() { ns.pods.run(ns.ctx) })
	}
}

func (ns *namespace) unsubscribe(r *runner) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	delete(ns.members, r)
}

// podChanged tells those whose pod it is. Neither before nor after is nil when
// it was there and is there.
func (ns *namespace) podChanged(before, after *pod) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if before != nil {
		for o := range ns.observers {
			o.podChanged(before, after)
		}
	}
	for j := range ns.ofJobs {
		if before != nil && j.concerns(before.labels) || after != nil && j.concerns(after.labels) {
			j.eye.poke()
		}
	}
	for r := range ns.members {
		sel := r.selector.Load()
		if sel == nil {
			continue
		}
		if before != nil && (*sel).Matches(before.labels) || after != nil && (*sel).Matches(after.labels) {
			r.poke(false)
		}
	}
}

// subscribeJobs lets j know what changes, and begins to watch what it needs.
func (ns *namespace) subscribeJobs(j *jobs) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.ofJobs[j] = true
	ns.watchPods()
	if !ns.jobsOn {
		ns.jobsOn = true
		ns.life.Go(func() { ns.jobs.run(ns.ctx) })
	}
}

func (ns *namespace) unsubscribeJobs(j *jobs) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	delete(ns.ofJobs, j)
	for other := range ns.ofJobs {
		other.eye.poke() // what j has left may be its own now
	}
}

// isJobRevision reports whether Jobs with this revision are those of an open Scaler.
func (ns *namespace) isJobRevision(revision string) bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for j := range ns.ofJobs {
		if j.labels[revisionKey] == revision {
			return true
		}
	}
	return false
}

// jobChanged tells those whose Job it is.
func (ns *namespace) jobChanged(before, after *job) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	one := after
	if one == nil {
		one = before
	}
	for j := range ns.ofJobs {
		if j.concerns(one.labels) {
			j.eye.poke()
		}
	}
}

// setChanged tells those whose ReplicaSet it is.
func (ns *namespace) setChanged(before, after *replicaSet) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	one := after
	if one == nil {
		one = before
	}
	for r := range ns.members {
		switch w := r.plan.workload; {
		case w.gvr == deployments && one.owner.kind == "Deployment" && one.owner.name == w.name,
			w.gvr == replicaSets && one.name == w.name:
			// A new one may be that of a workload that did not exist before.
			r.poke(before == nil)
		}
	}
}

// everything tells all: the lists are new, or the state of the connection. If
// events were missed, one may have been about the scale.
func (ns *namespace) everything(missed bool) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for r := range ns.members {
		r.poke(missed)
	}
	for j := range ns.ofJobs {
		j.eye.poke()
	}
}

// view is what is known of a namespace at one moment, as far as one workload
// is concerned.
type view struct {
	pods    []*pod
	sets    []*replicaSet
	synced  bool
	trouble *scaler.Failure
}

// see returns the view for r.
func (ns *namespace) see(r *runner) view {
	var v view
	v.pods, v.synced, v.trouble = ns.pods.all()
	if r.plan.workload.needsReplicaSets() {
		sets, synced, trouble := ns.sets.all()
		v.sets, v.synced = sets, v.synced && synced
		if v.trouble == nil {
			v.trouble = trouble
		}
	}
	return v
}
