//go:build linux

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/cluster/coordinatortest"
	clusterkubernetes "github.com/caddy-usher/usher/cluster/kubernetes"
	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// TestCoordinator holds the coordinator to its promises on a real API server,
// with the rights of deploy/kubernetes.
func TestCoordinator(t *testing.T) {
	const (
		name   = "usher-cluster" // as the manifest says
		server = "10.201.0.1:443"
	)
	namespace := makeNamespace(t, "")
	if _, err := cluster.Kubectl("", "apply", "-n", namespace, "-f", filepath.Join("..", "..", "deploy", "kubernetes", "cluster-rights.yaml")); err != nil {
		t.Fatal(err)
	}
	apply(t, fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: test, namespace: %s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: usher-cluster}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: usher}]
`, namespace))
	kubeconfig, err := os.ReadFile(cluster.Kubeconfig(kube.Usher))
	if err != nil {
		t.Fatal(err)
	}
	provision := func(t testing.TB, name, address string) *clusterkubernetes.Coordinator {
		t.Helper()
		text := string(kubeconfig)
		if address != "" {
			text = strings.Replace(text, "https://10.201.0.1", "https://"+address, 1)
		}
		path := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &clusterkubernetes.Coordinator{Namespace: namespace, Name: name, Kubeconfig: path}
		if err := c.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	opened := func(t testing.TB, name string) coordinator.Coordinator {
		t.Helper()
		c, err := provision(t, name, "").Open(coordinatortest.Name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	first := opened(t, name)
	harness.Eventually(t, soon, func() bool {
		_, err := first.Read(t.Context())
		return err == nil
	}, "the rights are in force")
	// They are for this one.
	if v, err := opened(t, "another").Read(t.Context()); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("another ConfigMap can be read: %v, error %v", v, err)
	}

	collection := "/api/v1/namespaces/" + namespace + "/configmaps"
	ask := func(t testing.TB, method, path, body string, want ...int) {
		t.Helper()
		status, answer, err := cluster.Do(method, path, "application/json", []byte(body))
		for _, w := range want {
			if err == nil && status == w {
				return
			}
		}
		t.Fatalf("%s %s: %d %s, error %v", method, path, status, answer, err)
	}
	remove := func(t testing.TB) {
		t.Helper()
		ask(t, http.MethodDelete, collection+"/"+name, "", http.StatusOK, http.StatusNotFound)
	}
	coordinatortest.Run(t, func(t *testing.T) coordinatortest.Subject {
		remove(t)
		return coordinatortest.Subject{
			Server:   server,
			Patience: recovered,
			Open: func(t testing.TB, address string) coordinator.Store {
				t.Helper()
				s, err := provision(t, name, address).OpenStore(coordinatortest.Name)
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Write: func(t testing.TB, data []byte) {
				t.Helper()
				remove(t)
				object, err := json.Marshal(map[string]any{
					"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name},
					"data": map[string]string{"view": string(data)},
				})
				if err != nil {
					t.Fatal(err)
				}
				ask(t, http.MethodPost, collection, string(object), http.StatusCreated)
			},
			Delete: remove,
			Stop: func(t testing.TB) (start func()) {
				cluster.APIServer.Kill()
				return func() { restore(t, cluster.APIServer.Start) }
			},
			Freeze: func(t testing.TB) (thaw func()) {
				if err := cluster.APIServer.Freeze(); err != nil {
					t.Fatal(err)
				}
				return func() { restore(t, cluster.APIServer.Thaw) }
			},
		}
	})
}

// restore brings the API server back.
func restore(t testing.TB, up func() error) {
	t.Helper()
	if err := up(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.AwaitAPI(recovered); err != nil {
		t.Fatal(err)
	}
}
