package kubernetes

import (
	"context"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// The pauses between looks at the events of a workload whose pods do not come.
const (
	firstLook = 500 * time.Millisecond
	lastLook  = 15 * time.Second
)

// lookForRefusals finds out why pods are missing, where no condition of a
// ReplicaSet says so: from the events of the workload.
func (r *runner) lookForRefusals() {
	r.mu.Lock()
	missing := r.full && !r.closed && r.last.Trouble == nil && !r.plan.workload.needsReplicaSets() &&
		r.scale.replicas > r.alive()
	first := r.looked == 0
	if missing {
		r.looked = min(max(2*r.looked, firstLook), lastLook)
		r.pokeIn(r.looked)
	}
	uid := r.scale.uid
	r.mu.Unlock()
	if !missing || first {
		// Pods take a moment to appear.
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	f := r.refusalOf(ctx, uid)
	r.mu.Lock()
	r.refusal = f
	r.mu.Unlock()
	if f != nil {
		r.report()
	}
}

// alive counts the instances of the last report that stay. The lock is held.
func (r *runner) alive() int {
	n := 0
	for _, in := range r.last.Instances {
		if in.Phase == scaler.PhaseStarting || in.Phase == scaler.PhaseReady {
			n++
		}
	}
	return n
}

// refusalOf reads the latest refusal to make a pod from the events.
func (r *runner) refusalOf(ctx context.Context, uid string) *scaler.Failure {
	var list *unstructured.UnstructuredList
	err := r.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
		list, err = c.Objects(events, r.ns.name).List(ctx, kubeaccess.Params{"fieldSelector": "involvedObject.uid=" + uid + ",reason=FailedCreate"})
		return err
	})
	if err != nil {
		if apierrors.IsForbidden(err) {
			r.cluster.once("events "+r.ns.name, func() {
				r.cluster.log.Warn("not permitted to list events: why pods cannot be made will not be known",
					slog.String("namespace", r.ns.name), slog.Any("error", err))
			})
		}
		return nil
	}
	var latest time.Time
	message := ""
	for i := range list.Items {
		if at := eventTime(&list.Items[i]); at.After(latest) {
			latest, message = at, text(list.Items[i].Object, "message")
		}
	}
	if message == "" || time.Since(latest) > refusalLife {
		return nil
	}
	return refused(message)
}

// refusalLife is how long an event speaks for the present.
const refusalLife = 5 * time.Minute

func eventTime(e *unstructured.Unstructured) time.Time {
	for _, field := range []string{"lastTimestamp", "eventTime", "firstTimestamp"} {
		if at := when(e.Object, field); !at.IsZero() {
			return at
		}
	}
	return e.GetCreationTimestamp().Time
}
