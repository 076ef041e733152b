//go:build linux

package kubernetes

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

var (
	wanted = flag.Bool("kubernetes", false, "run the tests, on a real Kubernetes")
	keep   = flag.Bool("kubernetes-keep", false, "leave the directory of the cluster, for its logs")
)

// cluster is the one that all tests share. Each has a namespace of its own,
// and none runs beside another: they stop nodes and the API server, and they
// measure.
var cluster *kube.Cluster

func TestMain(m *testing.M) {
	flag.Parse()
	if !*wanted {
		fmt.Println("skipped: the tests on a real Kubernetes run with the flag -kubernetes")
		return
	}
	if why := kube.Missing(); why != "" {
		fmt.Println("skipped: no Kubernetes can run here:", why)
		return
	}
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	if !kube.Inside() {
		return kube.Enter(kube.Options{Progress: os.Stdout, Race: harness.Race, Keep: *keep})
	}
	if cluster, err = kube.Up(3, os.Stdout); err != nil {
		return 1, err
	}
	status = m.Run()
	fmt.Println("figures:")
	for _, line := range figures.lines {
		fmt.Println("  " + line)
	}
	return status, nil
}

// figures are what was measured, for the end of the run.
var figures struct {
	sync.Mutex
	lines []string
}

// figure notes what a test has measured.
func figure(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	figures.Lock()
	defer figures.Unlock()
	figures.lines = append(figures.lines, t.Name()+": "+line)
}
