package kubernetes

import (
	"context"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/caddy-usher/usher/kubeaccess"
)

// autoscaledLife is how long the list of autoscaled workloads counts. There is no
// watch: an autoscaler makes itself felt by what it does.
const autoscaledLife = 30 * time.Second

// autoscaled are the workloads of a namespace that a HorizontalPodAutoscaler
// scales.
type autoscaled struct {
	mu sync.Mutex
	at time.Time
	by map[target]string // the names of the autoscalers
}

type target struct {
	group, kind, name string
}

// fresh tells whether a look was taken not long ago.
func (a *autoscaled) fresh() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.at) < autoscaledLife
}

// autoscaler returns the name of the HorizontalPodAutoscaler that scales a
// workload, empty if none is known. That none can be seen is not fatal.
func (ns *namespace) autoscaler(ctx context.Context, kind schema.GroupKind, name string) string {
	a := &ns.scaled
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.at) >= autoscaledLife {
		var list *unstructured.UnstructuredList
		err := ns.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
			list, err = c.Objects(autoscalers, ns.name).List(ctx, nil)
			return err
		})
		switch {
		case err == nil:
			a.at, a.by = time.Now(), make(map[target]string)
			for _, h := range list.Items {
				ref := child(child(h.Object, "spec"), "scaleTargetRef")
				gv, _ := schema.ParseGroupVersion(text(ref, "apiVersion"))
				a.by[target{gv.Group, text(ref, "kind"), text(ref, "name")}] = h.GetName()
			}
		case apierrors.IsForbidden(err):
			a.at = time.Now()
			ns.cluster.once("autoscalers "+ns.name, func() {
				ns.cluster.log.Warn("not permitted to list horizontalpodautoscalers: if one scales a workload of Usher's, they will fight over it",
					slog.String("namespace", ns.name), slog.Any("error", err))
			})
		case apierrors.IsNotFound(err):
			a.at = time.Now() // a cluster without autoscaling
		}
	}
	return a.by[target{kind.Group, kind.Kind, name}]
}
