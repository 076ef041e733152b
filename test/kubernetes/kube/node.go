//go:build linux

package kube

import (
	"fmt"
	"os"
	"os/exec"
	"time"
)

// A Node is a kubelet with its containers.
type Node struct {
	Name string

	cluster *Cluster
	number  int
	netns   string // "" for the first node
	ip      string
	link    string // the control plane's end of the node's cable
	kubelet *Component
}

func (c *Cluster) newNode(number int) *Node {
	n := &Node{
		Name:    fmt.Sprintf("n%d", number),
		cluster: c,
		number:  number,
		ip:      fmt.Sprintf("10.201.0.%d", number),
	}
	if number > 1 {
		n.netns, n.link = n.Name, "veth"+n.Name
	}
	return n
}

func (n *Node) podRange() string     { return fmt.Sprintf("10.244.%d.0/24", n.number) }
func (n *Node) cgroup() string       { return n.cluster.id + "-" + n.Name }
func (n *Node) socket() string       { return "/run/" + n.Name + "/containerd.sock" }
func (n *Node) path(e string) string { return n.cluster.path(n.Name, e) }

// Cut unplugs the node: it and its pods run on, but cannot be reached. The first
// node cannot be cut off.
func (n *Node) Cut() error { return run("ip", "link", "set", n.link, "down") }

// Join plugs it in again.
func (n *Node) Join() error { return run("ip", "link", "set", n.link, "up") }

// makeNetwork links the nodes by a bridge. There is no default route: nothing
// leaves. That is also why the range of services needs a route, without which
// a connection would fail before the kernel looks for the real address.
func (c *Cluster) makeNetwork() error {
	commands := [][]string{
		{"addr", "add", serviceIP + "/32", "dev", "lo"},
		{"link", "add", "node0", "type", "bridge"},
		{"addr", "add", apiIP + "/24", "dev", "node0"},
		{"link", "set", "node0", "up"},
		{"route", "add", serviceRange, "dev", "node0"},
	}
	for _, n := range c.Nodes[min(1, len(c.Nodes)):] {
		commands = append(commands,
			[]string{"netns", "add", n.netns},
			[]string{"-n", n.netns, "link", "set", "lo", "up"},
			[]string{"link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", n.netns},
			[]string{"link", "set", n.link, "master", "node0", "up"},
			[]string{"-n", n.netns, "addr", "add", n.ip + "/24", "dev", "eth0"},
			[]string{"-n", n.netns, "link", "set", "eth0", "up"},
			[]string{"-n", n.netns, "route", "add", serviceRange, "via", apiIP})
	}
	for _, from := range c.Nodes {
		for _, to := range c.Nodes {
			route := []string{"route", "add", to.podRange(), "via", to.ip}
			if from.netns != "" {
				route = append([]string{"-n", from.netns}, route...)
			}
			if from != to {
				commands = append(commands, route)
			}
		}
	}
	for _, command := range commands {
		if err := run("ip", command...); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		if err := n.command("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward").Run(); err != nil {
			return fmt.Errorf("forwarding on %s: %w", n.Name, err)
		}
	}
	return nil
}

// command is a command in the network of the node.
func (n *Node) command(args ...string) *exec.Cmd {
	if n.netns != "" {
		args = append([]string{"nsenter", "--net=/run/netns/" + n.netns}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// startContainers starts containerd on every node and gives it the images.
func (c *Cluster) startContainers() error {
	for _, n := range c.Nodes {
		if err := n.startContainerd(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		err := await(30*time.Second, "containerd on "+n.Name, func() bool { return n.ctr("version") == nil }, c.components...)
		if err != nil {
			return err
		}
		for _, image := range []string{"pause.tar", "app.tar"} {
			if err := n.ctr("images", "import", c.path("images", image)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ctr asks the node's containerd.
func (n *Node) ctr(args ...string) error {
	return run("ctr", append([]string{"-a", n.socket(), "-n", "k8s.io"}, args...)...)
}

func (n *Node) startContainerd() error {
	for _, dir := range []string{n.path("cni"), "/run/" + n.Name} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := makeCgroup(n.cgroup()); err != nil {
		return fmt.Errorf("making cgroups: %w", err)
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	// The snapshotters that are left out complain about the file system;
	// without AppArmor and without lower scores for the out-of-memory killer
	// it also runs where root may not do everything.
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
`, n.path("containerd"), "/run/"+n.Name+"/containerd", n.socket(), n.path("containerd-opt"),
		pauseImage, pluginDir(), n.path("cni"), runc)
	if err := os.WriteFile(n.path("containerd.toml"), []byte(config), 0o644); err != nil {
		return err
	}
	network := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "kube", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, n.path("ipam"), n.podRange())
	if err := os.WriteFile(n.path("cni/10-kube.conflist"), []byte(network), 0o644); err != nil {
		return err
	}
	c := n.cluster
	return c.start(c.component(n.Name+"-containerd", n.netns, "containerd", "-c", n.path("containerd.toml")))
}

func (n *Node) startKubelet() error {
	c := n.cluster
	if err := os.WriteFile(n.path("resolv.conf"), nil, 0o644); err != nil {
		return err
	}
	// Nothing answers at the address of the DNS, but it has to have one.
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%s
containerRuntimeEndpoint: unix://%s
address: %s
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: %s}}
authorization: {mode: AlwaysAllow}
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
oomScoreAdj: 0
resolvConf: %s
podLogsDir: %s
volumePluginDir: %s
failSwapOn: false
makeIPTablesUtilChains: false
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 24h
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.inodesFree: "0%%"}
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 10
syncFrequency: 10s
`, n.cgroup(), n.socket(), n.ip, c.pki("ca.crt"), n.path("resolv.conf"), n.path("podlogs"), n.path("volumeplugins"))
	if err := os.WriteFile(n.path("kubelet.yaml"), []byte(config), 0o644); err != nil {
		return err
	}
	n.kubelet = c.component(n.Name+"-kubelet", n.netns, c.bin("kubelet"),
		"--config", n.path("kubelet.yaml"), "--kubeconfig", c.Kubeconfig("system:node:"+n.Name),
		"--root-dir", n.path("kubelet"), "--cert-dir", n.path("kubelet-pki"),
		"--hostname-override", n.Name, "--node-ip", n.ip)
	if err := c.start(n.kubelet); err != nil {
		return err
	}
	return c.start(c.component(n.Name+"-proxy", n.netns, c.bin("kube-proxy"),
		"--kubeconfig", c.Kubeconfig("system:kube-proxy"), "--hostname-override", n.Name,
		"--proxy-mode", "iptables", "--cluster-cidr", podRange, "--iptables-min-sync-period", "100ms",
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0",
		"--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", "127.0.0.1:10249"))
}
