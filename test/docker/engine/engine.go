//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/moby/client"
)

// An Engine is a container engine of the tests.
type Engine struct {
	Podman bool
	Dir    string
	Client *client.Client

	bridge     string
	pool       string // the addresses of networks that are made later
	containerd *process
	daemon     *process
}

// Missing says why no engine can run here, or "".
func Missing(podman bool) string {
	if os.Getuid() != 0 {
		return "that needs root"
	}
	programs := []string{"dockerd", "containerd", "runc", "ip"}
	if podman {
		programs = []string{"podman", "ip"}
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return "there is no " + p
		}
	}
	return ""
}

// Start starts an engine with its files in a new directory.
func Start(podman bool) (*Engine, error) {
	// Short, because of the sockets in it; and not below a tmpfs that is small.
	dir, err := os.MkdirTemp("/var/tmp", "ut-")
	if err != nil {
		return nil, err
	}
	e := &Engine{Podman: podman, Dir: dir}
	// The socket's own mode says which user may use it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	if err := e.start(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Host is the address of its socket.
func (e *Engine) Host() string { return "unix://" + e.Socket() }

// Socket is the path of its socket.
func (e *Engine) Socket() string { return filepath.Join(e.Dir, "engine.sock") }

func (e *Engine) start() error {
	var err error
	if e.Podman {
		err = e.preparePodman()
	} else {
		err = e.prepareDocker()
	}
	if err != nil {
		return err
	}
	if e.Client, err = client.New(client.WithHost(e.Host())); err != nil {
		return err
	}
	return e.Up()
}

// prepareDocker starts containerd and makes a bridge.
func (e *Engine) prepareDocker() error {
	var octet int
	for octet = 40; octet < 250; octet++ {
		name := fmt.Sprintf("utbr%d", octet)
		if exec.Command("ip", "link", "add", name, "type", "bridge").Run() == nil {
			e.bridge = name
			break
		}
	}
	if e.bridge == "" {
		return errors.New("no bridge can be made")
	}
	for _, args := range [][]string{
		{"addr", "add", fmt.Sprintf("10.213.%d.1/24", octet), "dev", e.bridge},
		{"link", "set", e.bridge, "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	// An engine of the machine may have set the policy to drop what is forwarded.
	e.pool = fmt.Sprintf("10.214.%d.0/24", octet)
	_ = exec.Command("iptables", e.forward("-I")...).Run() // without it nothing is dropped
	for name, text := range map[string]string{
		"containerd.toml": "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
		"daemon.json":     "{}\n",
	} {
		if err := os.WriteFile(e.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	e.containerd = &process{log: e.path("containerd.log"), args: []string{
		"containerd", "--config", e.path("containerd.toml"), "--root", e.path("cd"), "--state", e.path("cs"), "--address", e.path("c.sock"),
	}}
	if err := e.containerd.start(); err != nil {
		return err
	}
	if err := e.await("containerd", e.path("c.sock"), e.containerd); err != nil {
		return err
	}
	e.daemon = &process{log: e.path("engine.log"), args: []string{
		"dockerd", "--config-file", e.path("daemon.json"), "--data-root", e.path("data"), "--exec-root", e.path("exec"),
		"--pidfile", e.path("pid"), "--containerd", e.path("c.sock"), "-H", e.Host(), "--bridge", e.bridge,
		"--iptables=false", "--ip-masq=false", "--storage-driver", "vfs", "--live-restore",
		"--default-address-pool", "base=" + e.pool + ",size=28",
	}}
	return nil
}

func (e *Engine) preparePodman() error {
	conf := "[containers]\ndefault_ulimits = []\nlog_driver = \"k8s-file\"\n[network]\nnetwork_config_dir = \"" + e.path("net") + "\"\ndefault_subnet = \"10.215.40.0/24\"\n[engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\n"
	if err := os.Mkdir(e.path("net"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(e.path("containers.conf"), []byte(conf), 0o600); err != nil {
		return err
	}
	e.daemon = &process{log: e.path("engine.log"), env: []string{"CONTAINERS_CONF=" + e.path("containers.conf"), "TMPDIR=" + e.Dir}, args: []string{
		"podman", "--root", e.path("root"), "--runroot", e.path("run"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
		"--tmpdir", e.path("tmp"), "system", "service", "--time=0", e.Host(),
	}}
	return nil
}

// forward are the arguments that make or delete the rule that lets the containers
// of other networks talk to each other.
func (e *Engine) forward(do string) []string {
	return []string{do, "FORWARD", "-s", e.pool, "-d", e.pool, "-j", "ACCEPT"}
}

func (e *Engine) path(name string) string { return filepath.Join(e.Dir, name) }

// Up starts the daemon, and returns when it answers.
func (e *Engine) Up() error {
	if err := e.daemon.start(); err != nil {
		return err
	}
	return e.await("the engine", "", e.daemon)
}

// Down stops the daemon as a service manager does.
func (e *Engine) Down() { e.daemon.stop() }

// Kill ends the daemon at once. Containers go on.
func (e *Engine) Kill() { e.daemon.kill() }

// Freeze lets the daemon stand still; Thaw lets it go on.
func (e *Engine) Freeze() error { return e.daemon.freeze() }

// Thaw ends a Freeze.
func (e *Engine) Thaw() error { return e.daemon.thaw() }

// Log is the end of what the daemon wrote.
func (e *Engine) Log(lines int) string { return e.daemon.tail(lines) }

// await waits until a socket accepts connections, or, without one, until the
// engine answers.
func (e *Engine) await(what, socket string, p *process) error {
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var err error
		if socket == "" {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			_, err = e.Client.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
			cancel()
		} else {
			var conn net.Conn
			if conn, err = net.Dial("unix", socket); err == nil {
				conn.Close()
			}
		}
		switch {
		case err == nil:
			return nil
		case !p.running():
			return fmt.Errorf("%s has ended:\n%s", what, p.tail(20))
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not come up: %w\n%s", what, err, p.tail(20))
		}
	}
}

// Close removes the containers, ends the engine, and removes its files.
func (e *Engine) Close() error {
	var errs []error
	if e.Client != nil {
		if e.daemon.running() {
			errs = append(errs, e.Clear(context.Background()))
		}
		errs = append(errs, e.Client.Close())
	}
	for _, p := range []*process{e.daemon, e.containerd} {
		if p != nil {
			p.stop()
		}
	}
	if e.pool != "" {
		_ = exec.Command("iptables", e.forward("-D")...).Run() // there is none without iptables
	}
	if e.bridge != "" {
		errs = append(errs, exec.Command("ip", "link", "delete", e.bridge).Run())
	}
	e.unmount()
	return errors.Join(append(errs, os.RemoveAll(e.Dir))...)
}

// unmount unmounts what the engine has left mounted below its directory.
func (e *Engine) unmount() {
	text, _ := os.ReadFile("/proc/self/mounts")
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.Dir+"/") {
			points = append([]string{f[1]}, points...)
		}
	}
	for _, p := range points {
		_ = exec.Command("umount", "-l", p).Run() // what stays mounted fails the removal, which is reported
	}
}
