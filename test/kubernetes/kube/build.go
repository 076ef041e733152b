//go:build linux

package kube

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// version is the version of Kubernetes that cluster/go.mod pins. It only
// stamps the binary, but the API server compares it with what it can do.
const version = "1.36.3"

// components are the names under which the one binary is called.
var components = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

// cniPlugins is where the packages of CNI plugins put them.
var cniPlugins = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// Missing says why no cluster can run here, or "".
func Missing() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	// Daemons of the machine often live where only root looks.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	for _, name := range []string{"containerd", "ctr", "runc", "iptables", "ip", "nsenter", "go"} {
		if _, err := exec.LookPath(name); err != nil {
			return "no " + name
		}
	}
	if pluginDir() == "" {
		return "no CNI plugins"
	}
	return ""
}

func pluginDir() string {
	for _, dir := range cniPlugins {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return ""
}

// buildComponents returns the path of the binary that holds all components. It
// stays in the user's cache directory under the hash of what it is made from:
// linking it again takes half a minute, compiling it a quarter of an hour.
func buildComponents(progress io.Writer) (string, error) {
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	name, err := fingerprint(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "usher-test")
	binary := filepath.Join(cache, name)
	if given := os.Getenv("USHER_TEST_KUBERNETES"); given != "" {
		return given, nil
	}
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "compiling Kubernetes %s: about 15 minutes the first time\n", version)
	start := time.Now()
	fresh := fmt.Sprintf("%s.%d", binary, os.Getpid())
	defer os.Remove(fresh)

	// The flags must stay as they are: other flags compile everything anew.
	stamp := "k8s.io/component-base/version"
	minor := strings.Split(version, ".")[1]
	ldflags := fmt.Sprintf("-s -w -X %s.gitVersion=v%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean",
		stamp, version, stamp, stamp, minor, stamp)
	cmd := exec.Command("nice", "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", ldflags, "-o", fresh, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling Kubernetes: %w\n%s", err, out)
	}
	fmt.Fprintf(progress, "compiled Kubernetes in %s\n", time.Since(start).Round(time.Second))
	return binary, os.Rename(fresh, binary)
}

// sourceDir is the module of the components: it is not part of Usher's own,
// whose build and tests must not meet it.
func sourceDir() (string, error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/caddy-usher/usher/test/kubernetes").Output()
	if err != nil {
		return "", fmt.Errorf("finding test/kubernetes: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "cluster"), nil
}

func fingerprint(source string) (string, error) {
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, version, runtime.GOARCH, strings.TrimSpace(string(out)))
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	return fmt.Sprintf("kubernetes-%s-%x", version, sum.Sum(nil)[:8]), nil
}

// buildOwn builds a program of this project into the directory of the cluster.
func buildOwn(output, pkg string, environment []string, flags ...string) error {
	args := append([]string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", output}, flags...)
	cmd := exec.Command("go", append(args, "github.com/caddy-usher/usher/"+pkg)...)
	cmd.Env = append(os.Environ(), environment...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// linkComponents gives the binary its names.
func linkComponents(binary, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var failed error
	for _, name := range components {
		failed = errors.Join(failed, os.Symlink(binary, filepath.Join(dir, name)))
	}
	return failed
}
