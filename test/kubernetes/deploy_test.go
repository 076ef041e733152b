//go:build linux

package kubernetes

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDeploy applies the manifests that users apply, and asks for the demo.
func TestDeploy(t *testing.T) {
	loadUsherImage(t)
	namespace := makeNamespace(t, "")
	pods := watchPods(t, namespace)
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl("", append(args, "-n", namespace)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	start := time.Now()
	(&space{t: t, name: namespace}).secret()
	kubectl("apply", "-k", filepath.Join("..", "..", "deploy", "kubernetes"))
	kubectl("wait", "--for=condition=Available", "deployment/usher", "--timeout=60s")
	up := time.Since(start)
	if n := len(pods.live()); n != 3 {
		t.Errorf("%d pods run before the first request, want the three Caddys alone", n)
	}

	service := kubectl("get", "service", "usher", "-o", "jsonpath={.spec.clusterIP}")
	start = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+service+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	woke := time.Since(start)
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "Hello from a pod") {
		t.Errorf("status %d, body %q", res.StatusCode, body)
	}
	// The rights are the least that work, and do work.
	for line := range strings.Lines(kubectl("logs", "-l", "app.kubernetes.io/name=usher", "--tail=-1")) {
		if strings.Contains(line, `"level":"error"`) || strings.Contains(line, "forbidden") || strings.Contains(line, "not permitted") {
			t.Errorf("Usher's log has %s", line)
		}
	}
	figure(t, "Usher serves %s ms after kubectl apply; the demo's first page took %s ms", ms(up), ms(woke))
}
