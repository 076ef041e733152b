package kubernetes

import (
	"context"
	"fmt"
	"math"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// costKey is the annotation by which a ReplicaSet chooses among pods that are
// all ready: the lowest cost goes first.
const costKey = "controller.kubernetes.io/pod-deletion-cost"

// A change is an order that is being carried out.
type change struct {
	*runner
	from    scale
	to      int
	victims []*pod // named in the order
	kept    []*pod // the other pods that live
}

// carryOut does what the order says.
func (c *change) carryOut(ctx context.Context) error {
	var err error
	c.mu.Lock()
	c.ordering = true
	c.mu.Unlock()
	switch {
	case c.to == 0 || c.to >= c.from.replicas:
		// From zero no pod can be removed, so one call is enough.
		if c.to != c.from.replicas {
			blind := c.from.replicas == 0 && len(c.kept)+len(c.victims) == 0
			err = c.setReplicas(ctx, c.from, c.to, blind)
		}
		if err == nil && c.to > 0 {
			// They are replaced: that many were ordered.
			err = c.delete(ctx, c.victims)
		}
	case c.ordered():
		err = c.shrinkFromTheTop(ctx)
	default:
		err = c.shrink(ctx)
	}
	c.mu.Lock()
	c.ordering = false
	changed := c.scale.replicas != c.from.replicas
	c.mu.Unlock()
	c.poke(c.report()) // also to see whether what was ordered comes
	if changed {
		c.claimOwnership(ctx)
	}
	return err
}

// leaveNumber carries out an order as far as it does not change the number:
// pods that do not become ready are deleted, and come back.
func (c *change) leaveNumber(ctx context.Context) error {
	var broken []*pod
	for _, p := range c.victims {
		if !p.ready {
			broken = append(broken, p)
		}
	}
	err := c.delete(ctx, broken)
	c.report()
	if err == nil && len(broken) < len(c.victims) {
		return scaler.ErrLater
	}
	return err
}

// ordered tells whether the controller stops pods in an order of its own.
func (c *change) ordered() bool {
	for _, p := range c.victims {
		if p.owner.kind == "StatefulSet" {
			return true
		}
	}
	for _, p := range c.kept {
		if p.owner.kind == "StatefulSet" {
			return true
		}
	}
	return c.plan.workload.gvr == statefulSets
}

// shrinkFromTheTop takes away the highest ordinals, as far as they are named
// or not there. A pod elsewhere that does not work is deleted, and comes back.
func (c *change) shrinkFromTheTop(ctx context.Context) error {
	victims, kept := make(map[int]*pod), make(map[int]bool)
	for _, p := range c.victims {
		victims[p.stopRank()-1] = p
	}
	for _, p := range c.kept {
		kept[p.stopRank()-1] = true
	}
	to := c.from.replicas
	for to > c.to && !kept[c.from.start+to-1] {
		to--
		delete(victims, c.from.start+to)
	}
	if to < c.from.replicas {
		if err := c.setReplicas(ctx, c.from, to, false); err != nil {
			return err
		}
	}
	var broken []*pod
	for _, p := range victims {
		if !p.ready {
			broken = append(broken, p)
		}
	}
	if err := c.delete(ctx, broken); err != nil {
		return err
	}
	if to > c.to || len(broken) < len(victims) {
		return scaler.ErrLater
	}
	return nil
}

// shrink removes the victims, and no other pod. A ReplicaSet that shrinks first
// removes pods that are not running or not ready; only among ready pods does it
// choose the lowest cost. So shrink waits until the ReplicaSet cannot remove a
// kept pod in place of a victim.
func (c *change) shrink(ctx context.Context) error {
	if !c.safe() {
		return scaler.ErrLater
	}
	if err := c.lowerDeletionCost(ctx); err != nil {
		return err
	}
	knowsCost := true
	for _, p := range c.victims {
		knowsCost = knowsCost && p.owner.kind == "ReplicaSet"
	}
	if knowsCost {
		// If the controller sees the scale first, the cost decides. If it sees
		// the deletion first, it makes a new pod, which is pending and goes first.
		if err := c.setReplicas(ctx, c.from, c.to, false); err != nil {
			c.restoreCost(ctx)
			return err
		}
		return c.delete(ctx, c.victims)
	}
	// How this controller chooses is not known. Once the victims are being
	// deleted, it most likely chooses a pod that it made in their place.
	if err := c.delete(ctx, c.victims); err != nil {
		return err
	}
	return c.setReplicas(ctx, c.from, c.to, false)
}

// safe tells whether a ReplicaSet would take the victims before all others.
func (c *change) safe() bool {
	last, first := 0, rankReady
	for _, p := range c.victims {
		last = max(last, p.rank())
	}
	for _, p := range c.kept {
		first = min(first, p.rank())
	}
	return len(c.victims) == 0 || first == rankReady || last < first
}

// rankReady is the rank of a pod that is ready.
const rankReady = 3

// rank is the position of p in the order in which a ReplicaSet removes pods,
// without their cost.
func (p *pod) rank() int {
	switch {
	case p.node == "":
		return 0
	case p.phase != "Running":
		return 1
	case !p.ready:
		return 2
	}
	return rankReady
}

// lowerDeletionCost makes a ReplicaSet choose the victims first.
func (c *change) lowerDeletionCost(ctx context.Context) error {
	return c.annotate(ctx, strconv.Itoa(math.MinInt32))
}

// restoreCost removes the cost: the victims stay after all, and may be the
// busiest pods at the next choice.
func (c *change) restoreCost(ctx context.Context) { _ = c.annotate(ctx, nil) }

func (c *change) annotate(ctx context.Context, cost any) error {
	for _, p := range c.victims {
		_, err := c.patch(ctx, pods, p.name, map[string]any{"metadata": map[string]any{
			"uid": p.uid, "annotations": map[string]any{costKey: cost},
		}})
		// It may be gone, or another of the same name.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return apiFailure(err, "patch", "pod "+p.name)
		}
	}
	return nil
}

// delete deletes these very pods.
func (c *change) delete(ctx context.Context, victims []*pod) error {
	var failed error
	for _, p := range victims {
		uid := types.UID(p.uid)
		err := c.cluster.do(ctx, func(ctx context.Context, d *kubeaccess.Client) error {
			return d.Objects(pods, c.ns.name).Delete(ctx, p.name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &uid},
			})
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failed = apiFailure(err, "delete", "pods")
		}
	}
	if failed != nil {
		return fmt.Errorf("stopping pods of %s: %w", c.describe(), failed)
	}
	return nil
}
