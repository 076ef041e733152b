//go:build linux

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// soon is the time for what the cluster does by itself. It runs out only
// if something is wrong.
var soon = harness.Slow(40 * time.Second)

// recovered is the time in which Kubernetes itself has come back after its API
// server was away: its controllers pause for up to half a minute between their
// attempts.
var recovered = harness.Slow(2 * time.Minute)

// A space is a namespace, a Caddy, and an eye on the pods.
type space struct {
	*harness.Caddy

	t    *testing.T
	name string
	pods *podWatch
}

// rights are the least that Usher's user needs: what deploy/kubernetes grants.
const rights = `
- {apiGroups: [apps], resources: [deployments, statefulsets], verbs: [get, patch]}
- {apiGroups: [apps], resources: [deployments/scale, statefulsets/scale], verbs: [get, patch]}
- {apiGroups: [apps], resources: [replicasets], verbs: [list, watch]}
- {apiGroups: [""], resources: [pods], verbs: [list, watch, patch, delete]}
- {apiGroups: [""], resources: [events], verbs: [list]}
- {apiGroups: [autoscaling], resources: [horizontalpodautoscalers], verbs: [list]}
- {apiGroups: [test.example], resources: [fleets, fleets/scale], verbs: [get, patch]}
`

// newSpace makes a namespace of the test's name in which Usher has its rights.
func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{Caddy: harness.New(t), t: t}
	s.name = makeNamespace(t, rights)
	s.pods = watchPods(t, s.name)
	return s
}

// namespaces counts them: a name is not free again at once.
var namespaces int

// makeNamespace makes a namespace with rules for Usher's user, if there are
// any. It goes with the test, and its pods are gone before the next test begins.
func makeNamespace(t *testing.T, rules string) string {
	t.Helper()
	namespaces++
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ",", "").Replace(t.Name()))
	name = fmt.Sprintf("%s-%d", name[:min(len(name), 50)], namespaces)
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}\n")
	if rules != "" {
		apply(t, fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: usher, namespace: %[1]s}
rules:%[2]s
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: usher, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: usher}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: usher}]
`, name, rules))
	}
	harness.Eventually(t, recovered, func() bool {
		status, _, err := cluster.Do(http.MethodGet, "/api/v1/namespaces/"+name+"/serviceaccounts/default", "", nil)
		return err == nil && status == http.StatusOK
	}, "the namespace has a service account, without which there are no pods")
	t.Cleanup(func() {
		if t.Failed() {
			report(t, name)
		}
		if err := cluster.Delete("/api/v1/namespaces/" + name); err != nil {
			t.Error(err)
		}
		// Requests have ended: the pods need no grace period.
		gone := func() bool {
			_ = cluster.Delete("/api/v1/namespaces/" + name + "/pods?gracePeriodSeconds=0")
			var list struct{ Items []kube.Pod }
			return cluster.Get("/api/v1/namespaces/"+name+"/pods", &list) == nil && len(list.Items) == 0
		}
		if !harness.WaitFor(soon, gone) {
			t.Errorf("pods are left in the namespace %s", name)
		}
	})
	return name
}

// report shows what a failed test leaves behind.
func report(t *testing.T, namespace string) {
	for _, what := range [][]string{
		{"get", "all", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out, _ := cluster.Kubectl("", append(what, "-n", namespace)...)
		lines := strings.SplitAfter(out, "\n")
		t.Logf("kubectl %s:\n%s", strings.Join(what, " "), strings.Join(lines[max(0, len(lines)-40):], ""))
	}
}

func apply(t testing.TB, manifest string) {
	t.Helper()
	if _, err := cluster.Kubectl(manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// kubectl runs kubectl in the namespace, as the administrator.
func (s *space) kubectl(args ...string) string {
	s.t.Helper()
	out, err := cluster.Kubectl("", append(args, "-n", s.name)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// usher is the directive for a service of that name that runs a resource of
// the namespace.
func (s *space) usher(service, resource string, options ...string) string {
	return usherIn(s.name, service, resource, options...)
}

func usherIn(namespace, service, resource string, options ...string) string {
	backend := fmt.Sprintf("backend kubernetes %s {\n\tnamespace %s\n\tport 8080\n\tkubeconfig %s\n}",
		resource, namespace, cluster.Kubeconfig(kube.Usher))
	return harness.Usher(service, append([]string{backend}, options...)...)
}

// site is a configuration with one service, web.
func (s *space) site(resource string, options ...string) harness.Config {
	return harness.Config{Site: "log\n" + s.usher("web", resource, options...)}
}

// hold is the path of a request that stays inside until Open(gate).
func (s *space) hold(gate string) string { return "/hold?gate=" + s.Path(gate) }

// inside waits until n requests in all have entered an instance.
func (s *space) inside(n int) {
	s.t.Helper()
	harness.Eventually(s.t, soon, func() bool { return len(s.Journal().Of("begin")) == n }, "%d requests have entered", n)
}

// asleep sends the service to sleep and waits until its pods are gone.
func (s *space) asleep(service string) {
	s.t.Helper()
	s.Post(service+"/sleep", "")
	s.noPods()
}

func (s *space) noPods() {
	s.t.Helper()
	harness.Eventually(s.t, soon, func() bool { return len(s.pods.live()) == 0 }, "all pods are gone")
}

// A podWatch notes when each step of the life of a pod was announced.
type podWatch struct {
	mu   sync.Mutex
	pods map[string]*podLife // by UID
	seq  []*podLife

	// unseen are the pods that a new watch has not told of yet: those of which
	// it never does were deleted when there was no watch.
	unseen map[*podLife]bool
}

type podLife struct {
	kube.Pod

	ipAt, readyAt, goingAt, goneAt time.Time
}

func watchPods(t *testing.T, namespace string) *podWatch {
	w := &podWatch{pods: make(map[string]*podLife)}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		cluster.Watch(ctx, "/api/v1/namespaces/"+namespace+"/pods", w.note)
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return w
}

func (w *podWatch) note(kind string, object json.RawMessage) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case "RESET":
		w.unseen = make(map[*podLife]bool)
		for _, life := range w.seq {
			w.unseen[life] = life.goneAt.IsZero()
		}
		return
	case "BOOKMARK":
		for life, live := range w.unseen {
			if live {
				life.goneAt = now
			}
		}
		w.unseen = nil
		return
	}
	var pod kube.Pod
	if json.Unmarshal(object, &pod) != nil || pod.Metadata.UID == "" {
		return
	}
	life := w.pods[pod.Metadata.UID]
	if life == nil {
		life = new(podLife)
		w.pods[pod.Metadata.UID] = life
		w.seq = append(w.seq, life)
	}
	life.Pod = pod
	delete(w.unseen, life)
	first := func(at *time.Time, is bool) {
		if is && at.IsZero() {
			*at = now
		}
	}
	first(&life.ipAt, pod.Status.PodIP != "")
	first(&life.readyAt, pod.Ready())
	first(&life.goingAt, pod.Going() || kind == "DELETED")
	first(&life.goneAt, kind == "DELETED")
}

// all returns every pod that there ever was, in the order of their creation.
func (w *podWatch) all() []podLife {
	w.mu.Lock()
	defer w.mu.Unlock()
	lives := make([]podLife, 0, len(w.seq))
	for _, life := range w.seq {
		lives = append(lives, *life)
	}
	return lives
}

// live returns the pods that are not gone.
func (w *podWatch) live() []podLife {
	return slices.DeleteFunc(w.all(), func(l podLife) bool { return !l.goneAt.IsZero() })
}

// of returns the pod of that name.
func (w *podWatch) of(name string) podLife {
	for _, l := range slices.Backward(w.all()) {
		if l.Metadata.Name == name {
			return l
		}
	}
	return podLife{}
}

// names returns the names of pods, sorted.
func names(lives []podLife) []string {
	all := make([]string, 0, len(lives))
	for _, l := range lives {
		all = append(all, l.Metadata.Name)
	}
	slices.Sort(all)
	return all
}

// pod is the name of the pod that gave an answer.
func pod(r harness.Response) string { return r.Header.Get("X-Instance") }

// wantOK checks for an answer of an instance.
func wantOK(t testing.TB, r harness.Response) {
	t.Helper()
	if r.Err != nil || r.Status != http.StatusOK {
		t.Errorf("status %d (%s), error %v, body %q", r.Status, r.UsherError(), r.Err, r.Body)
	}
}

// describe sums failed answers up.
func describe(bad []harness.Response) string {
	kinds := make(map[string]int)
	for _, r := range bad {
		kinds[strings.TrimSpace(fmt.Sprintf("%d %s %v", r.Status, r.UsherError(), r.Err))]++
	}
	return fmt.Sprint(kinds)
}

// quantile returns the time below which that part of the times lies.
func quantile(times []time.Duration, part float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// ms writes times as milliseconds.
func ms(times ...time.Duration) string {
	var b strings.Builder
	for i, d := range times {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%.1f", float64(d.Microseconds())/1000)
	}
	return b.String()
}
