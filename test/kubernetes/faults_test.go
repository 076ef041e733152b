//go:build linux

package kubernetes

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// spread keeps the pods of a workload on nodes that can be cut off, on each
// one.
const spread = `affinity:
  nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [n1]}]}]}}
  podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}]}`

// failedAfter returns the failures among the answers from the nth on.
func failedAfter(all []harness.Response, n int) []harness.Response {
	return harness.Failed(all[min(n, len(all)):])
}

// TestPodKilledUnderLoad ends a pod as the machine would, and then as a
// hurried operator would. Only what was inside may suffer.
func TestPodKilledUnderLoad(t *testing.T) {
	const clients = 8
	s := newSpace(t)
	s.create(workload{})
	s.Start(s.site("deployment/web", "instances 2 2", "concurrency 100"))
	s.AwaitReady("web", 2, soon)
	for _, how := range []string{"process", "pod"} {
		load := s.Load(clients, "/sleep?d=5ms")
		harness.Eventually(t, soon, func() bool { return load.Len() > 50 }, "the load runs")
		harness.Eventually(t, soon, func() bool { return len(s.pods.live()) == 2 }, "two pods")
		victim := s.pods.live()[0]
		start := time.Now()
		if how == "process" {
			kill(t, victim.Metadata.Name)
			harness.Eventually(t, soon, func() bool { return s.pods.of(victim.Metadata.Name).Restarts() == 1 }, "the kubelet has restarted the container")
		} else {
			s.kubectl("delete", "pod", victim.Metadata.Name, "--force", "--grace-period=0")
			harness.Eventually(t, soon, func() bool { return !s.pods.of(victim.Metadata.Name).goneAt.IsZero() }, "the pod is gone")
		}
		harness.Eventually(t, soon, func() bool {
			return s.Service("web").Instances.Ready == 2 && len(s.pods.live()) == 2
		}, "two instances are ready")
		whole := time.Since(start)
		before := load.Len()
		harness.Eventually(t, soon, func() bool { return load.Len() > before+50 }, "the load goes on")
		all := load.Stop()
		bad := harness.Failed(all)
		if len(bad) > clients {
			t.Errorf("%s: %d of %d failed, and at most %d were inside: %s", how, len(bad), len(all), clients, describe(bad))
		}
		figure(t, "%s killed: %d of %d requests failed (%d clients), two ready again after %s ms", how, len(bad), len(all), clients, ms(whole))
	}
}

// kill ends the app of a pod, wherever its process is.
func kill(t *testing.T, pod string) {
	t.Helper()
	found, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range found {
		environ, _ := os.ReadFile(path)
		if strings.Contains(string(environ), "USHER_INSTANCE="+pod+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no process of %s", pod)
}

// TestNodeCutOffUnderLoad unplugs the node of one of two pods. What is inside
// there hangs, because its fate cannot be known; everything else goes to the other.
func TestNodeCutOffUnderLoad(t *testing.T) {
	const clients = 8
	s := newSpace(t)
	s.create(workload{spec: spread})
	s.Start(s.site("deployment/web", "instances 2 2", "concurrency 100",
		"transport http {\n\tdial_timeout 1s\n\tresponse_header_timeout 2s\n}"))
	s.AwaitReady("web", 2, soon)
	load := s.Load(clients, "/sleep?d=5ms")
	harness.Eventually(t, soon, func() bool { return load.Len() > 50 }, "the load runs")

	node := cluster.Nodes[1]
	healthy := load.Len()
	start := time.Now()
	if err := node.Cut(); err != nil {
		t.Fatal(err)
	}
	rejoin := func() {
		if err := node.Join(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(rejoin)
	harness.Eventually(t, soon, func() bool { return s.Service("web").Instances.Ready == 1 }, "Usher counts on one instance")
	noticed := time.Since(start)
	harness.Eventually(t, soon, func() bool { return !node.Ready() }, "Kubernetes notices, too")
	official := time.Since(start)
	lost := load.Len()
	harness.Eventually(t, soon, func() bool { return load.Len() > lost+500 }, "the load goes on")
	quiet := load.Len()

	rejoin()
	start = time.Now()
	harness.Eventually(t, soon, node.Ready, "the node is back")
	harness.Eventually(t, soon, func() bool { return s.Service("web").Instances.Ready == 2 }, "two instances are ready")
	healed := time.Since(start)
	all := load.Stop()
	if bad := failedAfter(all[:quiet], lost); len(bad) > 0 {
		t.Errorf("%d requests failed when the node was known to be lost: %s", len(bad), describe(bad))
	}
	bad := failedAfter(all[:quiet], healthy)
	figure(t, "node cut off: out of Usher's books after %s ms, NotReady after %s ms; %d of %d requests failed until then: %s; both ready %s ms after the mending",
		ms(noticed), ms(official), len(bad), quiet-healthy, describe(bad), ms(healed))
}

// TestAPIServerDown takes the API away under load, once by its end and once by
// its silence.
func TestAPIServerDown(t *testing.T) {
	api := cluster.APIServer
	t.Run("stopped", func(t *testing.T) {
		apiDown(t, 20*time.Second, func() error { api.Kill(); return nil }, api.Start)
	})
	t.Run("frozen", func(t *testing.T) {
		// Nothing but time tells silence from slowness: ten seconds of it.
		apiDown(t, 20*time.Second, api.Freeze, api.Thaw)
	})
}

// accepted tells whether the API server has taken an order to scale.
func accepted(namespace, deployment string) bool {
	return slices.ContainsFunc(cluster.Calls(namespace), func(c kube.Call) bool {
		return c.Is("patch", "deployments/scale") && c.ObjectRef.Name == deployment && c.ResponseStatus.Code == http.StatusOK
	})
}

func apiDown(t *testing.T, outage time.Duration, down, up func() error) {
	s := newSpace(t)
	s.create(workload{name: "warm"})
	s.create(workload{name: "cold"})
	s.Start(harness.Config{Global: "metrics", Site: fmt.Sprintf("handle /cold {\n%s\n}\nhandle {\n%s\n}",
		s.usher("cold", "deployment/cold", "wait_timeout 120s"),
		s.usher("warm", "deployment/warm", "instances 0 2", "scale queue", "concurrency 4"))})
	wantOK(t, s.Send(harness.Request{Path: "/"}).Wait(t, soon))
	load := s.Load(3, "/sleep?d=5ms")
	harness.Eventually(t, soon, func() bool { return load.Len() > 50 }, "the load runs")

	broken := true
	restore := func() {
		if !broken {
			return
		}
		broken = false
		if err := up(); err != nil {
			t.Fatal(err)
		}
		if err := cluster.AwaitAPI(soon); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(restore)
	start := time.Now()
	if err := down(); err != nil {
		t.Fatal(err)
	}
	before := load.Len()
	waiting := s.Send(harness.Request{Path: "/cold"})
	// An outage has a length: this is no guess at how long something takes.
	var noticed time.Duration
	harness.Throughout(t, outage, func() bool {
		for _, up := range s.Metrics("caddy_usher_platform_up{") {
			if up == "0" && noticed == 0 {
				noticed = time.Since(start)
			}
		}
		return s.Service("warm").Instances.Ready == 1
	}, "the warm instance stays ready")
	if noticed == 0 {
		t.Errorf("Usher has not noticed an outage of %s", outage)
	}
	if !waiting.Done() {
		t.Fatalf("after %s without the API the cold service's client knows nothing", outage)
	}
	res := waiting.Wait(t, time.Second)
	if res.UsherError() != "platform_unavailable" {
		t.Errorf("the cold service's client got status %d (%s), want platform_unavailable", res.Status, res.UsherError())
	}
	told := fmt.Sprintf("was told %s after %s ms", res.UsherError(), ms(res.Took))
	during := load.Len() - before

	restore()
	start = time.Now()
	harness.Eventually(t, soon, func() bool {
		for _, up := range s.Metrics("caddy_usher_platform_up{") {
			if up == "0" {
				return false
			}
		}
		return true
	}, "Usher has the API back")
	caughtUp := time.Since(start)
	waiting = s.Send(harness.Request{Path: "/cold"})
	harness.Eventually(t, soon, func() bool { return accepted(s.name, "cold") }, "Usher has ordered the cold service's pod")
	ordered := time.Since(start)
	wantOK(t, waiting.Wait(t, recovered))
	woke := time.Since(start)
	all := load.Stop()
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d warm requests failed: %s", len(bad), len(all), describe(bad))
	}
	// What changed in the meantime arrives as well.
	s.kubectl("delete", "pod", "-l", "app=warm", "--wait=false")
	harness.Eventually(t, recovered, func() bool {
		instances := s.Service("warm").InstanceList
		return len(instances) == 1 && instances[0].State == "ready"
	}, "the books follow the pods again")
	wantOK(t, s.Send(harness.Request{Path: "/"}).Wait(t, soon))
	figure(t, "%s without the API: %d warm requests, %d failed of %d in all; noticed after %s ms; the cold service's client %s; after its return: caught up %s ms, ordered the cold service's pod %s ms, which served at %s ms, when Kubernetes's own controllers were back",
		outage, during, len(harness.Failed(all)), len(all), ms(noticed), told, ms(caughtUp), ms(ordered), ms(woke))
}
