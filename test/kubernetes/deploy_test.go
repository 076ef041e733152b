//go:build linux

package kubernetes

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// TestDeploy applies the manifests that users apply, and asks for the demo.
func TestDeploy(t *testing.T) {
	if harness.Race {
		t.Skip("a Caddy with the race detector does not run in an image without a C library")
	}
	if err := cluster.LoadImage("docker.io/library/usher:v1", os.Getenv("USHER_TEST_CADDY"), "/usr/bin/caddy"); err != nil {
		t.Fatal(err)
	}
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
	kubectl("apply", "-k", filepath.Join("..", "..", "deploy", "kubernetes"))
	kubectl("wait", "--for=condition=Available", "deployment/usher", "--timeout=60s")
	up := time.Since(start)
	if n := len(pods.live()); n != 1 {
		t.Errorf("%d pods run before anybody has asked, want Usher's alone", n)
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
	for line := range strings.Lines(kubectl("logs", "deployment/usher")) {
		if strings.Contains(line, `"level":"error"`) || strings.Contains(line, "forbidden") || strings.Contains(line, "not permitted") {
			t.Errorf("Usher's log has %s", line)
		}
	}
	figure(t, "Usher serves %s ms after kubectl apply; the demo's first page took %s ms", ms(up), ms(woke))
}
