//go:build linux

package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// The addresses inside. The first node shares its network with the control
// plane and the tests, so that pod addresses can be reached from both.
const (
	apiIP        = "10.201.0.1"
	serviceIP    = "10.96.0.1"
	serviceRange = "10.96.0.0/16"
	podRange     = "10.244.0.0/16"
)

// Users of a cluster. Usher is the one that a Caddy should be: it has no
// rights but those that a test gives it.
const (
	Admin = "admin"
	Usher = "usher"
)

// A Cluster is a running Kubernetes.
type Cluster struct {
	Dir       string
	APIServer *Component
	Nodes     []*Node

	*Client // as Admin

	id         string // names its cgroups
	components []*Component
}

// Up starts a cluster with so many nodes and returns when all are ready.
func Up(nodes int, progress io.Writer) (*Cluster, error) {
	start := time.Now()
	dir := os.Getenv(dirVariable)
	c := &Cluster{Dir: dir, id: filepath.Base(dir)}
	for i := range nodes {
		c.Nodes = append(c.Nodes, c.newNode(i+1))
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"files", c.writeFiles},
		{"network", c.makeNetwork},
		{"control plane", c.startControlPlane},
		{"containers", c.startContainers},
		{"API", c.awaitAPI},
		{"nodes", c.startNodes},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Fprintf(progress, "%6.1fs %s\n", time.Since(start).Seconds(), step.what)
	}
	return c, nil
}

// Kubeconfig is the path of a user's configuration.
func (c *Cluster) Kubeconfig(user string) string { return kubeconfig(c.Dir, user) }

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.Dir}, elements...)...)
}

func (c *Cluster) bin(name string) string { return c.path("bin", name) }
func (c *Cluster) pki(name string) string { return c.path("pki", name) }

func (c *Cluster) writeFiles() error {
	for _, dir := range []string{"etc", "log", "images"} {
		if err := os.Mkdir(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := makePKI(c.path("pki")); err != nil {
		return err
	}
	users := map[string]string{
		Admin:                            "system:masters",
		Usher:                            "",
		"system:kube-controller-manager": "",
		"system:kube-scheduler":          "",
		"system:kube-proxy":              "",
	}
	for _, n := range c.Nodes {
		users["system:node:"+n.Name] = "system:nodes"
	}
	if err := makeUsers(c.Dir, users); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("etc", "audit.yaml"), []byte(auditPolicy), 0o644); err != nil {
		return err
	}
	if err := writeImage(c.path("images", "pause.tar"), pauseImage, c.bin("app"), "/app", "-never-listen"); err != nil {
		return err
	}
	if err := writeImage(c.path("images", "app.tar"), AppImage, c.bin("app"), "/app"); err != nil {
		return err
	}
	client, err := newClient(c.Kubeconfig(Admin), c.pki("ca.crt"))
	c.Client = client
	return err
}

func (c *Cluster) start(p *Component) error {
	c.components = append(c.components, p)
	return p.Start()
}

func (c *Cluster) startControlPlane() error {
	etcd := c.component("etcd", "", c.bin("etcd"),
		"--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380")
	if err := c.start(etcd); err != nil {
		return err
	}
	c.APIServer = c.component("kube-apiserver", "", c.bin("kube-apiserver"),
		"--etcd-servers", "http://127.0.0.1:2379",
		"--bind-address", "0.0.0.0", "--secure-port", "443", "--advertise-address", apiIP,
		"--service-cluster-ip-range", serviceRange, "--allow-privileged", "--profiling=false",
		"--tls-cert-file", c.pki("apiserver.crt"), "--tls-private-key-file", c.pki("apiserver.key"),
		"--client-ca-file", c.pki("ca.crt"), "--token-auth-file", c.pki("tokens.csv"),
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--service-account-key-file", c.pki("sa.pub"), "--service-account-signing-key-file", c.pki("sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--kubelet-client-certificate", c.pki("kubelet-client.crt"), "--kubelet-client-key", c.pki("kubelet-client.key"),
		"--kubelet-preferred-address-types", "InternalIP",
		"--requestheader-client-ca-file", c.pki("front-proxy-ca.crt"), "--requestheader-allowed-names", "front-proxy",
		"--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", c.pki("front-proxy.crt"), "--proxy-client-key-file", c.pki("front-proxy.key"),
		"--audit-policy-file", c.path("etc", "audit.yaml"), "--audit-log-path", c.auditLog())
	return c.start(c.APIServer)
}

func (c *Cluster) awaitAPI() error {
	if err := await(2*time.Minute, "the API server", c.apiReady, c.components...); err != nil {
		return err
	}
	manager := c.component("kube-controller-manager", "", c.bin("kube-controller-manager"),
		"--kubeconfig", c.Kubeconfig("system:kube-controller-manager"), "--leader-elect=false",
		"--bind-address", "127.0.0.1", "--profiling=false",
		"--service-account-private-key-file", c.pki("sa.key"), "--root-ca-file", c.pki("ca.crt"),
		"--use-service-account-credentials", "--kube-api-qps", "200", "--kube-api-burst", "400",
		// A node that is cut off is noticed within a test's patience.
		"--node-monitor-period", "1s", "--node-monitor-grace-period", "12s")
	if err := c.start(manager); err != nil {
		return err
	}
	return c.start(c.component("kube-scheduler", "", c.bin("kube-scheduler"),
		"--kubeconfig", c.Kubeconfig("system:kube-scheduler"), "--leader-elect=false",
		"--bind-address", "127.0.0.1", "--profiling=false"))
}

func (c *Cluster) apiReady() bool {
	status, _, err := c.Do(http.MethodGet, "/readyz", "", nil)
	return err == nil && status == http.StatusOK
}

// AwaitAPI waits until the API server is of use again.
func (c *Cluster) AwaitAPI(timeout time.Duration) error {
	return await(timeout, "the API server", c.apiReady, c.APIServer)
}

func (c *Cluster) startNodes() error {
	for _, n := range c.Nodes {
		if err := n.startKubelet(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := await(2*time.Minute, "node "+n.Name, n.Ready, c.components...); err != nil {
			return err
		}
	}
	return await(time.Minute, "the default service account", func() bool {
		status, _, err := c.Do(http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", "", nil)
		return err == nil && status == http.StatusOK
	}, c.components...)
}

// Ready tells whether the control plane takes the node for ready.
func (n *Node) Ready() bool {
	_, body, err := n.cluster.Do(http.MethodGet, "/api/v1/nodes/"+n.Name, "", nil)
	if err != nil {
		return false
	}
	var node struct {
		Status struct{ Conditions []Condition }
	}
	return json.Unmarshal(body, &node) == nil && conditionTrue(node.Status.Conditions, "Ready")
}
