//go:build linux

package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// fleetDefinition defines a resource of which Kubernetes knows nothing but
// that it has a scale.
const fleetDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.test.example}
spec:
  group: test.example
  scope: Namespaced
  names: {plural: fleets, singular: fleet, kind: Fleet}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
`

// TestCustomResource scales a resource that has a controller of its own.
func TestCustomResource(t *testing.T) {
	s := newSpace(t)
	apply(t, fleetDefinition)
	harness.Eventually(t, soon, func() bool {
		status, _, err := cluster.Do(http.MethodGet, "/apis/test.example/v1/fleets", "", nil)
		return err == nil && status == http.StatusOK
	}, "the API server knows the resource")
	t.Cleanup(func() {
		_ = cluster.Delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/fleets.test.example")
	})
	apply(t, fmt.Sprintf("apiVersion: test.example/v1\nkind: Fleet\nmetadata: {name: web, namespace: %s}\nspec: {replicas: 0}\n", s.name))
	fleet := "/apis/test.example/v1/namespaces/" + s.name + "/fleets/web"
	if err := cluster.Merge(fleet+"/status", `{"status":{"replicas":0,"selector":"fleet=web"}}`); err != nil {
		t.Fatal(err)
	}
	s.controlFleet(fleet)

	s.Start(s.site("fleets.v1.test.example/web", "instances 0 2", "concurrency 1", "idle_timeout 2s", fast))
	first := s.Send(harness.Request{Path: s.hold("one")})
	s.inside(1)
	second := s.Send(harness.Request{Path: s.hold("two")})
	s.inside(2)
	s.Open("one")
	r := first.Wait(t, soon)
	wantOK(t, r)
	if going := s.gone(1); len(going) != 1 || going[0] != pod(r) {
		t.Errorf("going: %v, want the idle one, %s", going, pod(r))
	}
	s.Open("two")
	wantOK(t, second.Wait(t, soon))
	s.noPods()
	figure(t, "0 -> 1 -> 2 -> 1 -> 0, the first answer's pod went first; %d pods in all", len(s.pods.all()))
}

// controlFleet is a simple custom controller: it makes and
// deletes plain pods until there are as many as the resource says.
func (s *space) controlFleet(fleet string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for made := 0; ctx.Err() == nil; {
			made = s.reconcile(fleet, made)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	s.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (s *space) reconcile(fleet string, made int) int {
	var object struct{ Spec struct{ Replicas int } }
	var list struct{ Items []kube.Pod }
	pods := "/api/v1/namespaces/" + s.name + "/pods"
	if cluster.Get(fleet, &object) != nil || cluster.Get(pods+"?labelSelector=fleet=web", &list) != nil {
		return made
	}
	var live []kube.Pod
	for _, p := range list.Items {
		if !p.Going() {
			live = append(live, p)
		}
	}
	switch missing := object.Spec.Replicas - len(live); {
	case missing > 0:
		manifest := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: fleet-%d, labels: {fleet: web}}\nspec:\n%s\n",
			made, indent(s.podSpec(workload{}), 2))
		if status, _, err := cluster.Do(http.MethodPost, pods, "application/yaml", []byte(manifest)); err == nil && status == http.StatusCreated {
			made++
		}
	case missing < 0:
		// The newest, because no pod is named.
		victim := live[len(live)-1].Metadata.Name
		for _, p := range live {
			if strings.HasPrefix(p.Metadata.Annotations["controller.kubernetes.io/pod-deletion-cost"], "-") {
				victim = p.Metadata.Name
			}
		}
		_ = cluster.Delete(pods + "/" + victim)
	}
	_ = cluster.Merge(fleet+"/status", fmt.Sprintf(`{"status":{"replicas":%d}}`, len(live)))
	return made
}
