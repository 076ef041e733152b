package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// scale is what is known of a workload: its scale, and what stands on the
// object itself.
type scale struct {
	known      bool
	uid        string
	replicas   int
	version    string // the resource version, of the scale and of its object
	selector   labels.Selector
	ownership  ownership
	autoscaler string // the name of one that scales it
	template   bool   // it has a pod template
	start      int    // the first ordinal of a StatefulSet
}

// readScale reads everything about the workload.
func (r *runner) readScale(ctx context.Context) (scale, *scaler.Failure) {
	obj, err := r.get(ctx)
	if err != nil {
		return scale{}, apiFailure(err, "get", r.plan.workload.String())
	}
	sub, err := r.get(ctx, "scale")
	if err != nil {
		return scale{}, apiFailure(err, "get", "the scale of "+r.plan.workload.String())
	}
	s, f := r.newScale(sub)
	if f != nil {
		return scale{}, f
	}
	s.ownership = readOwnership(obj.GetAnnotations())
	spec := child(obj.Object, "spec")
	s.template = child(spec, "template") != nil
	s.start = int(number(child(spec, "ordinals"), "start"))
	s.autoscaler = r.ns.autoscaler(ctx, obj.GroupVersionKind().GroupKind(), obj.GetName())
	return s, nil
}

// newScale takes in a scale subresource.
func (r *runner) newScale(sub *unstructured.Unstructured) (scale, *scaler.Failure) {
	s := scale{
		known: true, uid: string(sub.GetUID()), version: sub.GetResourceVersion(),
		replicas: replicasOf(sub),
	}
	written := text(child(sub.Object, "status"), "selector")
	if written == "" {
		return s, &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "its scale has no selector",
			Detail: "status.selector of the scale of " + r.describe() + " is empty, which would stand for every pod of the namespace; a custom resource names its selector with labelSelectorPath",
		}
	}
	var err error
	if s.selector, err = labels.Parse(written); err != nil {
		return s, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "its scale has no usable selector", Err: err,
			Detail: "status.selector of the scale of " + r.describe() + " is " + written,
		}
	}
	return s, nil
}

// replicasOf returns the number that a scale works towards.
func replicasOf(sub *unstructured.Unstructured) int {
	return max(0, int(number(child(sub.Object, "spec"), "replicas")))
}

// get reads the workload, or a subresource of it.
func (r *runner) get(ctx context.Context, sub ...string) (u *unstructured.Unstructured, err error) {
	w := r.plan.workload
	err = r.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) error {
		u, err = c.Objects(w.gvr, r.ns.name).Get(ctx, w.name, sub...)
		return err
	})
	return u, err
}

// patch changes an object of the namespace by a merge patch.
func (r *runner) patch(ctx context.Context, gvr schema.GroupVersionResource, name string, change map[string]any, sub ...string) (u *unstructured.Unstructured, err error) {
	body, err := json.Marshal(change)
	if err != nil {
		return nil, err
	}
	err = r.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) error {
		u, err = c.Objects(gvr, r.ns.name).Merge(ctx, name, body, sub...)
		return err
	})
	return u, err
}

// Scale changes the number of replicas, and stops the pods that are named.
func (r *runner) Scale(ctx context.Context, order scaler.Order) error {
	r.orders.Lock()
	defer r.orders.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	fresh, f := r.awaitScale(ctx)
	if f != nil {
		return f
	}
	if superseded, _ := r.cluster.place(r); superseded {
		if order.Instances == 0 {
			return nil
		}
		if !r.takeBack(ctx) {
			return scaler.ErrLater
		}
	}
	r.mu.Lock()
	s := r.scale
	mine, _ := r.own(r.ns.see(r))
	foreigner := r.foreigner()
	r.mu.Unlock()
	if fresh && s.replicas > 0 {
		// The order knew nothing of what there is; now it is known.
		return nil
	}
	if foreigner != nil {
		return foreigner
	}

	b := &change{runner: r, from: s, to: order.Instances}
	for _, p := range mine {
		switch named := contains(order.Stop, r.nameOf(p)); {
		case p.live() && named:
			b.victims = append(b.victims, p)
		case p.live():
			b.kept = append(b.kept, p)
		}
	}
	var err error
	if s.replicas > 0 && b.to > 0 && b.to != s.replicas && r.autoscaled(ctx) {
		err = b.leaveNumber(ctx)
	} else {
		err = b.carryOut(ctx)
	}
	if f, ok := errors.AsType[*scaler.Failure](err); ok && f.Reason == scaler.ReasonPlatform && ctx.Err() == nil {
		r.doubt(f)
	}
	return err
}

// doubt takes it that the API cannot be asked, until it is seen that it can: a
// watch that hears nothing cannot tell silence from peace.
func (r *runner) doubt(f *scaler.Failure) {
	r.mu.Lock()
	r.trouble = f
	r.reading = firstRetry
	r.mu.Unlock()
	r.report()
	r.pokeIn(firstRetry)
}

// nameOf returns the id under which a pod was reported.
func (r *runner) nameOf(p *pod) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reported[p.uid]
}

func contains(ids []string, id string) bool {
	for _, one := range ids {
		if one == id && id != "" {
			return true
		}
	}
	return false
}

// awaitScale waits until it is known what there is. It returns whether that
// was not known when the order was given.
func (r *runner) awaitScale(ctx context.Context) (fresh bool, f *scaler.Failure) {
	again := false
	for {
		r.mu.Lock()
		full, trouble, reading, news := r.full, r.last.Trouble, r.trouble, r.news
		r.mu.Unlock()
		if reading != nil && !again {
			// It could not be read before: perhaps it can now.
			again = true
			r.read(ctx)
			r.report()
			continue
		}
		switch {
		case full:
			return fresh, reading
		case trouble != nil:
			return false, trouble
		}
		fresh = true
		select {
		case <-news:
		case <-ctx.Done():
			return false, apiFailure(ctx.Err(), "get", r.plan.workload.String())
		}
	}
}

// autoscaled tells whether an autoscaler scales the workload now.
func (r *runner) autoscaled(ctx context.Context) bool {
	r.mu.Lock()
	known := r.scale.autoscaler
	r.mu.Unlock()
	if known == "" && r.ns.scaled.fresh() {
		return false
	}
	s, f := r.readScale(ctx)
	if f != nil {
		return known != ""
	}
	r.mu.Lock()
	r.scale.autoscaler = s.autoscaler
	r.mu.Unlock()
	return s.autoscaler != ""
}

// setReplicas sets the number, given that it is still what it was when the
// order was decided upon. Others write to the same object all the time, so a
// conflict alone says nothing.
func (r *runner) setReplicas(ctx context.Context, from scale, to int, blind bool) error {
	version := from.version
	for try := 0; ; try++ {
		patch := map[string]any{"spec": map[string]any{"replicas": to}}
		if !blind {
			patch["metadata"] = map[string]any{"resourceVersion": version}
		}
		sub, err := r.patch(ctx, r.plan.workload.gvr, r.plan.workload.name, patch, "scale")
		switch {
		case err == nil:
			r.mu.Lock()
			r.changes++
			r.scale.replicas, r.scale.version = replicasOf(sub), sub.GetResourceVersion()
			r.trouble = nil
			r.mu.Unlock()
			return nil
		case !apierrors.IsConflict(err) || try == conflictTries:
			return apiFailure(err, "patch", "the scale of "+r.plan.workload.String())
		}
		sub, err = r.get(ctx, "scale")
		if err != nil {
			return apiFailure(err, "get", "the scale of "+r.plan.workload.String())
		}
		if replicasOf(sub) != from.replicas {
			// Another client was faster: decide again with its number.
			r.read(ctx)
			r.report()
			return scaler.ErrLater
		}
		version = sub.GetResourceVersion()
	}
}

// conflictTries is how often a change is retried because another client
// wrote to the same object.
const conflictTries = 8

// claimOwnership writes the ownership annotation. A failure is not fatal.
func (r *runner) claimOwnership(ctx context.Context) {
	m := ownership{By: r.self, Time: time.Now().UTC().Truncate(time.Second)}
	obj, err := r.patch(ctx, r.plan.workload.gvr, r.plan.workload.name, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{ownerKey: m.String()}},
	})
	if err != nil {
		r.ownershipFails(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	r.scale.ownership = m
	r.scale.version = obj.GetResourceVersion()
}
