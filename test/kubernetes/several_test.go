//go:build linux

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/test/harness"
)

// caddys are the Caddys of deploy/kubernetes, in a namespace of the test's. They
// share a Deployment, web, instead of the demo.
type caddys struct {
	*space // its own Caddy does not run: it keeps the journal

	service string // the address of the Service
}

// deployCaddys applies the manifests that users apply, with another service in the
// Caddyfile.
func deployCaddys(t *testing.T, options ...string) *caddys {
	t.Helper()
	loadUsherImage(t)
	c := &caddys{space: &space{Caddy: harness.New(t), t: t, name: makeNamespace(t, "")}}
	c.pods = watchPods(t, c.name)
	c.create(workload{})
	c.overlay(options...)
	c.secret()
	start := time.Now()
	c.kubectl("apply", "-k", c.Path("overlay"))
	c.rolledOut()
	c.service = c.kubectl("get", "service", "usher", "-o", "jsonpath={.spec.clusterIP}") + ":80"
	c.together()
	figure(t, "three Caddys are one cluster %s ms after kubectl apply", ms(time.Since(start)))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := cluster.Kubectl("", "logs", "-n", c.name, "-l", "app.kubernetes.io/name=usher", "--prefix", "--tail=100")
			t.Logf("what the Caddys wrote last:\n%s", out)
		}
	})
	return c
}

// in is c for a subtest.
func (c *caddys) in(t *testing.T) *caddys {
	s := *c.space
	s.t = t
	return &caddys{&s, c.service}
}

// loadUsherImage gives the nodes the image that the manifests name.
func loadUsherImage(t *testing.T) {
	t.Helper()
	if harness.Race {
		t.Skip("a Caddy with the race detector does not run in an image without a C library")
	}
	if err := cluster.LoadImage("docker.io/library/usher:v1", os.Getenv("USHER_TEST_CADDY"), "/usr/bin/caddy"); err != nil {
		t.Fatal(err)
	}
}

// overlay writes a kustomization that puts another service in the Caddyfile.
func (c *caddys) overlay(options ...string) {
	c.t.Helper()
	manifests, err := filepath.Abs(filepath.Join("..", "..", "deploy", "kubernetes"))
	if err != nil {
		c.t.Fatal(err)
	}
	dir := c.Path("overlay")
	base, err := filepath.Rel(dir, manifests)
	if err != nil {
		c.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(manifests, "Caddyfile"))
	if err != nil {
		c.t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "usher hello {")
	_, after, closed := strings.Cut(rest, "\n\t\t}\n")
	if !ok || !closed {
		c.t.Fatalf("the demo is not where it was:\n%s", text)
	}
	web := harness.Usher("web", append([]string{"backend kubernetes deployment/web"}, options...)...)
	files := map[string]string{
		"Caddyfile": before + web + "\n" + after,
		"kustomization.yaml": fmt.Sprintf(`
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%q]
configMapGenerator: [{name: usher, behavior: replace, files: [Caddyfile]}]
`, base),
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
}

// secret makes what the manifests expect.
func (s *space) secret() {
	s.t.Helper()
	s.kubectl("create", "secret", "generic", "usher-cluster", "--from-literal=secret=what all of them know")
}

// rolledOut waits until the Deployment of the Caddys is as it should be.
func (c *caddys) rolledOut() {
	c.t.Helper()
	c.kubectl("rollout", "status", "deployment/usher", "--timeout=180s")
}

// members are the pods of the Caddys that are not on their way out.
func (c *caddys) members() []podLife {
	return slices.DeleteFunc(c.pods.live(), func(l podLife) bool {
		return !strings.HasPrefix(l.Metadata.Name, "usher-") || l.Going()
	})
}

// next is a member other than that one.
func (c *caddys) next(than podLife) podLife {
	members := c.members()
	return members[slices.IndexFunc(members, func(l podLife) bool { return l.Metadata.Name != than.Metadata.Name })]
}

// run runs `caddy usher` in the pod of a Caddy.
func (c *caddys) run(pod string, args ...string) (string, error) {
	return cluster.Kubectl("", append([]string{"exec", "-n", c.name, pod, "--", "/usr/bin/caddy", "usher"}, args...)...)
}

// status is the cluster as one of the Caddys sees it.
func (c *caddys) status(pod string) (st hub.ClusterStatus, err error) {
	out, err := c.run(pod, "cluster", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st, err
}

// together waits until three Caddys follow one of them, and returns its pod.
func (c *caddys) together() (leader podLife) {
	c.t.Helper()
	var last hub.ClusterStatus
	ok := harness.WaitFor(soon, func() bool {
		members := c.members()
		if len(members) != 3 {
			return false
		}
		for _, l := range members {
			st, err := c.status(l.Metadata.Name)
			last = st
			if err != nil || st.Isolated || len(st.Members) != 3 {
				return false
			}
			for _, m := range st.Members {
				if m.Lost || !slices.ContainsFunc(members, func(l podLife) bool { return m.Member == l.Status.PodIP+":7443" }) {
					return false
				}
				if m.Leader && m.Member == st.Member {
					leader = l
				}
			}
		}
		return leader.Metadata.Name != ""
	})
	if !ok {
		c.t.Fatalf("three Caddys are no cluster; one sees %+v", last)
	}
	return leader
}

// ask sends one request by a connection of its own.
func ask(address, path, seq string) (r harness.Response) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	start := time.Now()
	r.Seq, r.Header = seq, make(http.Header)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		r.Err = err
		return r
	}
	req.Header.Set("X-Seq", seq)
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	r.Took = time.Since(start)
	if err != nil {
		r.Err = err
		return r
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	r.Took = time.Since(start)
	r.Status, r.Header, r.Body, r.Err = res.StatusCode, res.Header, string(body), err
	return r
}

// A crowd are clients that ask again and again, each by new connections.
type crowd struct {
	stop func()
	done sync.WaitGroup

	mu  sync.Mutex
	all []harness.Response
}

// crowd lets so many clients ask each of the addresses.
func (c *caddys) crowd(clients int, addresses ...string) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	w := &crowd{stop: stop}
	for k, address := range addresses {
		for n := range clients {
			w.done.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					r := ask(address, "/sleep?d=20ms", fmt.Sprintf("crowd%d-%d-%d", k, n, i))
					w.mu.Lock()
					w.all = append(w.all, r)
					w.mu.Unlock()
					if r.Err != nil {
						time.Sleep(5 * time.Millisecond) // do not spin on an address where nothing is
					}
				}
			})
		}
	}
	c.t.Cleanup(func() { w.end() })
	return w
}

func (w *crowd) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.all)
}

// goesOn waits for n more answers.
func (w *crowd) goesOn(t *testing.T, n int) {
	t.Helper()
	before := w.len()
	harness.Eventually(t, soon, func() bool { return w.len() >= before+n }, "%d more answers", n)
}

// end returns all answers, when those under way have come.
func (w *crowd) end() []harness.Response {
	w.stop()
	w.done.Wait()
	return w.all
}

// noMoreThanOne looks at the journal of the instances.
func (c *caddys) noMoreThanOne() {
	c.t.Helper()
	if n := c.Journal().MaxInside(); n != 1 {
		c.t.Errorf("%d requests at most were inside an instance with one slot", n)
	}
}

// allServed checks that every request has its answer.
func allServed(t *testing.T, all []harness.Response) {
	t.Helper()
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d requests failed: %s", len(bad), len(all), describe(bad))
	}
}

// longest is the longest time that an answer took.
func longest(all []harness.Response) (d time.Duration) {
	for _, r := range all {
		d = max(d, r.Took)
	}
	return d
}

// TestG14SeveralCaddysInPods holds the cluster of deploy/kubernetes to its promise
// while its pods come and go. It is the last of all tests: after its outage of the
// API server Kubernetes itself takes a while to come back.
func TestG14SeveralCaddysInPods(t *testing.T) {
	c := deployCaddys(t, "instances 0 3", "concurrency 1", "idle_timeout 10m")

	t.Run("burst", func(t *testing.T) {
		c := c.in(t)
		const requests = 500
		members := c.members()
		all := make([]harness.Response, requests)
		start := time.Now()
		var asking sync.WaitGroup
		for k := range requests {
			asking.Go(func() {
				all[k] = ask(members[k%len(members)].Status.PodIP+":8080", "/sleep?d=20ms", "burst"+strconv.Itoa(k))
			})
		}
		asking.Wait()
		allServed(t, all)
		c.noMoreThanOne()
		figure(t, "%d requests over three Caddys from nothing: all served after %s ms", requests, ms(time.Since(start)))
	})

	t.Run("rolling update", func(t *testing.T) {
		c := c.in(t)
		before := names(c.members())
		load := c.crowd(9, c.service)
		load.goesOn(t, 50)
		start := time.Now()
		c.kubectl("rollout", "restart", "deployment/usher")
		c.rolledOut()
		c.together()
		took := time.Since(start)
		load.goesOn(t, 50)
		for _, name := range names(c.members()) {
			if slices.Contains(before, name) {
				t.Errorf("%s was not replaced", name)
			}
		}
		// The last one of before is still to leave.
		harness.Eventually(t, soon, func() bool {
			return len(slices.DeleteFunc(c.pods.live(), func(l podLife) bool { return !slices.Contains(before, l.Metadata.Name) })) == 0
		}, "those of before are gone")
		load.goesOn(t, 50)
		all := load.end()
		allServed(t, all)
		c.noMoreThanOne()
		figure(t, "all three Caddys replaced after %s ms: %d requests, %d failed, the longest took %s ms", ms(took), len(all), len(harness.Failed(all)), ms(longest(all)))
	})

	t.Run("leader deleted", func(t *testing.T) {
		c := c.in(t)
		leader := c.together()
		load := c.crowd(9, c.service)
		load.goesOn(t, 50)
		start := time.Now()
		c.kubectl("delete", "pod", leader.Metadata.Name, "--wait=false")
		harness.Eventually(t, soon, func() bool { return !c.pods.of(leader.Metadata.Name).goneAt.IsZero() }, "the leader is gone")
		next := c.together()
		took := time.Since(start)
		if next.Metadata.Name == leader.Metadata.Name {
			t.Fatal("the same one leads")
		}
		load.goesOn(t, 50)
		all := load.end()
		allServed(t, all)
		c.noMoreThanOne()
		figure(t, "the leader deleted: three again after %s ms; %d requests, %d failed, the longest took %s ms", ms(took), len(all), len(harness.Failed(all)), ms(longest(all)))
	})

	t.Run("leader stands still", func(t *testing.T) {
		c := c.in(t)
		leader := c.together()
		wantOK(t, ask(c.service, "/", ""))
		var victim podLife
		for _, l := range c.pods.live() {
			if strings.HasPrefix(l.Metadata.Name, "web-") {
				victim = l
			}
		}
		logs := func(member podLife, message string) func() bool {
			return func() bool {
				for line := range strings.Lines(c.kubectl("logs", member.Metadata.Name)) {
					if strings.Contains(line, message) && strings.Contains(line, `"instance":"`+victim.Metadata.Name+`.`) {
						return true
					}
				}
				return false
			}
		}
		for _, m := range c.members() {
			harness.Eventually(t, soon, logs(m, "instance ready"), "all know the pod")
		}
		signalAt(t, leader.Status.PodIP, syscall.SIGSTOP)
		goOn := sync.OnceFunc(func() { signalAt(t, leader.Status.PodIP, syscall.SIGCONT) })
		t.Cleanup(goOn)
		start := time.Now()
		if err := cluster.Delete("/api/v1/namespaces/" + c.name + "/pods/" + victim.Metadata.Name + "?gracePeriodSeconds=0"); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.members() {
			if m.Metadata.Name != leader.Metadata.Name {
				harness.Eventually(t, soon, logs(m, "instance stopped"), "the others know by themselves that a pod is gone")
			}
		}
		took := time.Since(start)
		st, err := c.status(c.next(leader).Metadata.Name)
		if err != nil || st.Leader != leader.Status.PodIP+":7443" {
			t.Errorf("%s leads, error %v: there was another one to tell of it", st.Leader, err)
		}
		goOn()
		c.together()
		wantOK(t, ask(c.service, "/", ""))
		c.noMoreThanOne()
		figure(t, "the leader stands still and a pod is deleted: the others know after %s ms", ms(took))
	})

	t.Run("leader killed", func(t *testing.T) {
		c := c.in(t)
		leader := c.together()
		var others []string
		for _, m := range c.members() {
			if m.Metadata.Name != leader.Metadata.Name {
				others = append(others, m.Status.PodIP+":8080")
			}
		}
		load := c.crowd(4, others...)
		load.goesOn(t, 50)
		start := time.Now()
		signalAt(t, leader.Status.PodIP, syscall.SIGKILL)
		load.goesOn(t, 50)
		harness.Eventually(t, soon, func() bool {
			return c.pods.of(leader.Metadata.Name).Restarts() == 1 && c.pods.of(leader.Metadata.Name).Ready()
		}, "the kubelet has restarted it")
		next := c.together()
		took := time.Since(start)
		if next.Metadata.Name == leader.Metadata.Name {
			t.Error("the one that was killed leads again")
		}
		load.goesOn(t, 50)
		all := load.end()
		allServed(t, all)
		c.noMoreThanOne()
		// The next leader scales.
		if _, err := c.run(next.Metadata.Name, "sleep", "web"); err != nil {
			t.Error(err)
		}
		harness.Eventually(t, soon, func() bool {
			return len(slices.DeleteFunc(c.pods.live(), func(l podLife) bool { return !strings.HasPrefix(l.Metadata.Name, "web-") })) == 0
		}, "the next leader stops the instances")
		allServed(t, []harness.Response{ask(c.service, "/", "")})
		figure(t, "the leader killed: three again after %s ms; %d requests to the others, %d failed, the longest took %s ms", ms(took), len(all), len(harness.Failed(all)), ms(longest(all)))
	})

	t.Run("API server stopped", func(t *testing.T) {
		c := c.in(t)
		const outage = 20 * time.Second
		c.together()
		var addresses []string
		for _, m := range c.members() {
			addresses = append(addresses, m.Status.PodIP+":8080")
		}
		load := c.crowd(3, addresses...)
		load.goesOn(t, 50)
		cluster.APIServer.Kill()
		restored := sync.OnceFunc(func() { restore(t, cluster.APIServer.Start) })
		t.Cleanup(restored)
		// An outage has a length: this is no guess at how long something takes.
		until := time.Now().Add(outage)
		before := load.len()
		for time.Now().Before(until) {
			load.goesOn(t, 10)
		}
		during := load.len() - before
		restored()
		c.together()
		load.goesOn(t, 50)
		all := load.end()
		allServed(t, all)
		c.noMoreThanOne()
		figure(t, "%s without the API: %d requests to three Caddys, %d of %d failed in all, the longest took %s ms", outage, during, len(harness.Failed(all)), len(all), ms(longest(all)))
	})
}

// signalAt sends a signal to the Caddy of the pod with that address.
func signalAt(t *testing.T, ip string, sig syscall.Signal) {
	t.Helper()
	found, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range found {
		environ, _ := os.ReadFile(path)
		if strings.Contains(string(environ), "POD_IP="+ip+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no process of the pod %s", ip)
}
