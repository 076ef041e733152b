//go:build linux

package kubernetes

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	backend "github.com/caddy-usher/usher/backends/kubernetes"
	"github.com/caddy-usher/usher/scaler/discoverytest"
	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// annotation is how a key of Usher's is written.
func annotation(key string) string { return "usher.caddyserver.com/" + key }

// workloads is a discoverytest.Platform: Deployments of a namespace, seen through
// a line to the API server that can be cut.
type workloads struct {
	namespace string
	line      *line
}

func (w *workloads) Put(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	annotations := make(map[string]string)
	for key, value := range labels {
		annotations[annotation(key)] = value
	}
	text, err := json.Marshal(annotations)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s, annotations: %[3]s}
spec:
  replicas: 0
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: app, image: %[4]q}]}
`, name, w.namespace, text, kube.AppImage))
}

func (w *workloads) Remove(t *testing.T, name string) {
	t.Helper()
	if err := cluster.Delete("/apis/apps/v1/namespaces/" + w.namespace + "/deployments/" + name); err != nil {
		t.Fatal(err)
	}
}

func (w *workloads) Away(*testing.T) { w.line.cut() }
func (w *workloads) Back(*testing.T) { w.line.restore() }

// grant gives Usher's user the rights of a file of deploy/kubernetes in a
// namespace.
func grant(t *testing.T, namespace string, files ...string) {
	t.Helper()
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", name))
		if err != nil {
			t.Fatal(err)
		}
		account, user := "  - kind: ServiceAccount\n    name: usher", "  - kind: User\n    apiGroup: rbac.authorization.k8s.io\n    name: usher"
		if strings.Count(string(text), account) != 1 {
			t.Fatalf("%s does not grant its rights to the service account usher:\n%s", name, text)
		}
		if _, err := cluster.Kubectl(strings.Replace(string(text), account, user, 1), "apply", "-n", namespace, "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
}

// A discovery with the rights of discover-rights.yaml, and nothing more, keeps
// its contract on a real API server.
func TestDiscoveryConforms(t *testing.T) {
	discoverytest.Run(t, func(t *testing.T) discoverytest.Setup {
		w := &workloads{namespace: makeNamespace(t, ""), line: newLine(t, cluster.Kubeconfig(kube.Usher))}
		grant(t, w.namespace, "discover-rights.yaml")
		d := &backend.Discoverer{Namespaces: []string{w.namespace}, Kubeconfig: w.line.kubeconfig}
		if err := d.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		return discoverytest.Setup{
			Discoverer: d, Platform: w, Type: "kubernetes", Key: annotation,
			Means: func(description json.RawMessage) (string, error) {
				var b struct{ Resource, Namespace, Kubeconfig string }
				if err := json.Unmarshal(description, &b); err != nil {
					return "", err
				}
				name, ok := strings.CutPrefix(b.Resource, "deployment/")
				if !ok || b.Namespace != w.namespace || b.Kubeconfig != w.line.kubeconfig {
					return "", fmt.Errorf("it means %s in namespace %s by %s", b.Resource, b.Namespace, b.Kubeconfig)
				}
				return name, nil
			},
		}
	})
}

// A workload with an annotation is a service that is reached by its host. Without
// the annotation it is none, and the workload stays as it is. Usher has the rights
// of rights.yaml and discover-rights.yaml, and nothing more.
func TestAnAnnotationMakesAService(t *testing.T) {
	s := &space{Caddy: harness.New(t), t: t, name: makeNamespace(t, "")}
	grant(t, s.name, "rights.yaml", "discover-rights.yaml")
	s.pods = watchPods(t, s.name)
	s.create(workload{})
	s.create(workload{name: "other"})
	s.Start(harness.Config{
		Usher: fmt.Sprintf("kubernetes {\n\tkubeconfig %s\n}\nregistry {\n\tdiscover kubernetes {\n\t\tnamespace %s\n\t}\n}", cluster.Kubeconfig(kube.Usher), s.name),
		Site:  "log\nusher {http.request.host}",
	})
	ask := func() harness.Response { return s.Do(harness.Request{Path: "/", Host: "shop.example.com"}) }
	unknown := func() {
		t.Helper()
		harness.Eventually(t, soon, func() bool { return ask().UsherError() == "unknown_service" }, "shop.example.com is the host of no service")
	}
	unknown()
	start := time.Now()
	// What it says of others has no effect.
	s.kubectl("annotate", "deployment/web", annotation("enable")+"=true", annotation("hosts")+"=shop.example.com", annotation("port")+"=http",
		annotation("namespace")+"=kube-system", annotation("resource")+"=deployment/other", annotation("command")+"=sh")
	harness.Eventually(t, soon, func() bool { return ask().Status == http.StatusOK }, "shop.example.com is served")
	figure(t, "from the annotation to the first answer of a pod that had to start: %s ms", ms(time.Since(start)))
	for _, life := range s.pods.live() {
		if !strings.HasPrefix(life.Metadata.Name, "web-") {
			t.Errorf("the pod %s runs", life.Metadata.Name)
		}
	}
	s.kubectl("annotate", "deployment/web", annotation("enable")+"-")
	unknown()
	if n := len(s.pods.live()); n != 1 {
		t.Errorf("%d pods of the workload run after it is no service any more", n)
	}
	// As it was, it is one again.
	s.kubectl("annotate", "deployment/web", annotation("enable")+"=true")
	harness.Eventually(t, soon, func() bool { return ask().Status == http.StatusOK }, "shop.example.com is served again")
	s.kubectl("delete", "deployment/web")
	unknown()
}

// A line leads to the API server, and can be cut.
type line struct {
	address, to string
	kubeconfig  string // by which the line is taken

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
	done  sync.WaitGroup
}

// newLine makes a line to the server of a kubeconfig.
func newLine(t *testing.T, kubeconfig string) *line {
	t.Helper()
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), `server: "https://`)
	host, _, closed := strings.Cut(rest, `"`)
	if !ok || !closed {
		t.Fatalf("%s names no server", kubeconfig)
	}
	l := &line{address: addr.Free(t).String(), to: host, conns: make(map[net.Conn]bool), kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if _, _, err := net.SplitHostPort(host); err != nil {
		l.to = net.JoinHostPort(host, "443")
	}
	l.restore()
	name, _, _ := net.SplitHostPort(l.to)
	changed := strings.Replace(string(text), `server: "https://`+host+`"`, fmt.Sprintf(`server: "https://%s", tls-server-name: %q`, l.address, name), 1)
	if err := os.WriteFile(l.kubeconfig, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.cut()
		l.done.Wait()
	})
	return l
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ln != nil {
		l.ln.Close()
		l.ln = nil
	}
	for c := range l.conns {
		c.Close()
	}
}

func (l *line) restore() {
	ln, err := net.Listen("tcp", l.address)
	if err != nil {
		panic(err)
	}
	l.mu.Lock()
	l.ln = ln
	l.mu.Unlock()
	l.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.done.Go(func() { l.pass(ln, c) })
		}
	})
}

// pass lets a connection through until it is cut.
func (l *line) pass(ln net.Listener, c net.Conn) {
	defer c.Close()
	server, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer server.Close()
	l.mu.Lock()
	alive := l.ln == ln
	if alive {
		l.conns[c], l.conns[server] = true, true
	}
	l.mu.Unlock()
	if !alive {
		return
	}
	var there sync.WaitGroup
	there.Go(func() {
		_, _ = io.Copy(server, c) // its end is the connection's
		server.Close()
	})
	_, _ = io.Copy(c, server)
	c.Close()
	there.Wait()
	l.mu.Lock()
	delete(l.conns, c)
	delete(l.conns, server)
	l.mu.Unlock()
}
