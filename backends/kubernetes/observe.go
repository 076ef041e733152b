package kubernetes

import (
	"strconv"
	"strings"
	"sync"

	"github.com/caddy-usher/usher/scaler"
)

// observation watches the pods of a namespace for a Caddy that does not lead. It
// makes no other call.
type observation struct {
	cluster *cluster
	ns      *namespace
	port    string
	changed func()

	mu   sync.Mutex
	gone map[string]bool // what the ids of pods that are gone begin with
}

// Observe implements scaler.Observer.
func (b *Backend) Observe(env scaler.Env, changed func()) (scaler.Observation, error) {
	cl, err := joinCluster(b.plan.connection, env.Logger())
	if err != nil {
		return nil, err
	}
	space := b.plan.namespace
	if space == "" {
		space = cl.space
	}
	o := &observation{cluster: cl, ns: cl.join(space), port: b.plan.port, changed: changed, gone: make(map[string]bool)}
	o.ns.observe(o)
	return o, nil
}

// Close implements scaler.Observation.
func (o *observation) Close() {
	o.ns.unobserve(o)
	o.ns.leave()
	o.cluster.leave()
}

// podChanged takes note of a pod that was there, and that is gone or has changed.
func (o *observation) podChanged(before, after *pod) {
	if after != nil && after.uid == before.uid {
		if o.runOf(before) == o.runOf(after) && before.finished() == after.finished() {
			return
		}
	} else {
		o.mu.Lock()
		if len(o.gone) >= goneKept {
			clear(o.gone)
		}
		o.gone[before.id(0, "")] = true
		o.mu.Unlock()
	}
	o.changed()
}

func (o *observation) runOf(p *pod) int {
	n, _, _ := p.run(o.port)
	return n
}

// Ended implements scaler.Observation. The id may come from a Caddy whose view is
// ahead of this one's: what is not known yet has not ended.
func (o *observation) Ended(id string) bool {
	o.mu.Lock()
	gone := o.gone[id]
	for k := range id {
		gone = gone || id[k] == '.' && o.gone[id[:k]]
	}
	o.mu.Unlock()
	if gone {
		return true
	}
	for k := range id {
		if id[k] != '.' {
			continue
		}
		p, ok := o.ns.pods.get(id[:k])
		if !ok {
			continue
		}
		rest, ok := strings.CutPrefix(id, p.id(0, ""))
		if ok && (rest == "" || rest[0] == '.') {
			return p.finished() || o.runOf(p) > runIn(rest)
		}
	}
	return false
}

// runIn is the number of the run in what follows the pod in an id.
func runIn(rest string) int {
	digits, ok := strings.CutPrefix(rest, ".run")
	if !ok {
		return 0
	}
	digits, _, _ = strings.Cut(digits, ".")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 {
		return 0
	}
	return n - 1
}

// observe lets o know of pods that were there and have changed, and begins to
// watch them.
func (ns *namespace) observe(o *observation) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.observers[o] = true
	ns.watchPods()
}

func (ns *namespace) unobserve(o *observation) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	delete(ns.observers, o)
}

var _ scaler.Observer = (*Backend)(nil)
