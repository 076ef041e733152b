package kubernetes

import (
	"context"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// restartKey is the annotation of a pod template that `kubectl rollout
// restart` uses.
const restartKey = "kubectl.kubernetes.io/restartedAt"

// Restart lets the controller replace all pods, as `kubectl rollout restart`
// does.
func (r *runner) Restart(ctx context.Context) error {
	r.orders.Lock()
	defer r.orders.Unlock()
	if _, f := r.awaitScale(ctx); f != nil {
		return f
	}
	r.mu.Lock()
	template := r.scale.template
	r.mu.Unlock()
	if !template || r.plan.workload.gvr == replicaSets {
		return &scaler.Failure{
			Reason: scaler.ReasonConflict, ForGood: true, Short: "the workload does not replace its pods",
			Detail: r.describe() + " has no pod template whose change would be rolled out; stop its instances one by one instead",
		}
	}
	_, err := r.patch(ctx, r.plan.workload.gvr, r.plan.workload.name, map[string]any{
		"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
			"annotations": map[string]any{restartKey: time.Now().Format(time.RFC3339)},
		}}},
	})
	if err != nil {
		return apiFailure(err, "patch", r.plan.workload.String())
	}
	return nil
}
