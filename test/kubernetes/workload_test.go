//go:build linux

package kubernetes

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// A workload says what is particular to the pods of a test.
type workload struct {
	kind     string   // default Deployment
	name     string   // default web
	replicas int      // default 0
	args     []string // of the app, beside the address
	image    string   // default the app
	more     string   // further fields of the container, one a line
	spec     string   // further fields of the pod, one a line
}

// podSpec is the spec of a pod. The directory of the test is in the pod under
// its own path, so that gates and the journal work as they do with processes.
func (s *space) podSpec(w workload) string {
	args := append([]string{"-addr", ":8080"}, w.args...)
	policy := "Never"
	if w.image != "" {
		policy = "IfNotPresent"
	}
	return fmt.Sprintf(`terminationGracePeriodSeconds: 30
volumes: [{name: test, hostPath: {path: %[1]s}}]
%[2]s
containers:
- name: app
  image: %[3]q
  imagePullPolicy: %[4]s
  args: ["%[5]s"]
  ports: [{name: http, containerPort: 8080}]
  readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
  volumeMounts: [{name: test, mountPath: %[1]s}]
  env:
  - {name: APP_JOURNAL, value: %[1]s/journal}
  - {name: USHER_INSTANCE, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
%[6]s`, s.Dir, w.spec, cmp.Or(w.image, kube.AppImage), policy, strings.Join(args, `", "`), indent(w.more, 2))
}

// create makes the workload.
func (s *space) create(w workload) {
	s.t.Helper()
	s.createIn(s.name, w)
}

func (s *space) createIn(namespace string, w workload) {
	s.t.Helper()
	name := cmp.Or(w.name, "web")
	apply(s.t, fmt.Sprintf(`
apiVersion: apps/v1
kind: %s
metadata: {name: %[2]s, namespace: %[3]s}
spec:
  replicas: %[4]d
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
%[5]s`, cmp.Or(w.kind, "Deployment"), name, namespace, w.replicas, indent(s.podSpec(w), 6)))
	// From now on the controller follows, also when it had lost the API before.
	path := fmt.Sprintf("/apis/apps/v1/namespaces/%s/%ss/%s", namespace, strings.ToLower(cmp.Or(w.kind, "Deployment")), name)
	harness.Eventually(s.t, recovered, func() bool {
		var object struct {
			Status struct{ ObservedGeneration int }
		}
		return cluster.Get(path, &object) == nil && object.Status.ObservedGeneration > 0
	}, "the controller has seen %s", name)
}

func indent(text string, by int) string {
	if text == "" {
		return ""
	}
	pad := strings.Repeat(" ", by)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}
