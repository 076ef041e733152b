package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discoverytest"
)

// workloads is a discoverytest.Platform: Deployments of one namespace.
type workloads struct{ server *apiServer }

func (w workloads) Put(_ *testing.T, name string, labels map[string]string) {
	w.server.annotate("Deployment", "apps", name, labels)
}

func (w workloads) Remove(_ *testing.T, name string) {
	w.server.do(func() { w.server.remove("deployments", "apps/"+name) })
}

func (w workloads) Away(*testing.T) { w.server.stop() }
func (w workloads) Back(*testing.T) { w.server.start() }

// annotate makes a workload with these keys, or gives it these instead of those
// that it had.
func (s *apiServer) annotate(kind, space, name string, keys map[string]string) {
	annotations := object{ownerKey: `{"by":"x"}`, "example.com/other": "x"}
	for key, value := range keys {
		annotations[scheme.Key(key)] = value
	}
	resource := strings.ToLower(kind) + "s"
	s.do(func() {
		o := newObject(kind, name)
		o["metadata"].(object)["namespace"] = space
		o["metadata"].(object)["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		if before := s.objects[resource][keyOf(o)]; before != nil {
			o = copyOf(before)
		}
		o["metadata"].(object)["annotations"] = annotations
		s.store(resource, o)
	})
}

func discoverer(t *testing.T, d *Discoverer) *Discoverer {
	t.Helper()
	if err := d.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return d
}

// meant returns the workload that a description of a backend means.
func meant(backend json.RawMessage) (*plan, error) {
	var typed map[string]json.RawMessage
	if err := json.Unmarshal(backend, &typed); err != nil {
		return nil, err
	}
	delete(typed, "type")
	text, err := json.Marshal(typed)
	if err != nil {
		return nil, err
	}
	b := new(Backend)
	if err := caddy.StrictUnmarshalJSON(text, b); err != nil {
		return nil, err
	}
	err = b.Provision(caddy.Context{})
	return b.plan, err
}

func TestDiscoveryConforms(t *testing.T) {
	discoverytest.Run(t, func(t *testing.T) discoverytest.Setup {
		t.Parallel() // each check has a server of its own
		s := newAPIServer(t)
		s.spaces = true
		s.annotate("Deployment", "apps", "none", nil)
		return discoverytest.Setup{
			Discoverer: discoverer(t, &Discoverer{Namespaces: []string{"apps"}, Kubeconfig: s.kubeconfig()}),
			Platform:   workloads{s}, Type: "kubernetes", Key: scheme.Key, Secrets: []string{"Bearer"},
			Means: func(backend json.RawMessage) (string, error) {
				p, err := meant(backend)
				if err != nil {
					return "", err
				}
				if p.workload.gvr != deployments || p.namespace != "apps" {
					return "", fmt.Errorf("it means %s in namespace %s", p.workload, p.namespace)
				}
				return p.workload.name, nil
			},
		}
	})
}

// A finder collects what a discovery reports.
type finder struct {
	t  *testing.T
	mu sync.Mutex

	lists int
	found []string // "object: labels" of the latest list, sorted
	last  []scaler.Found
	errs  []error
}

func find(t *testing.T, d scaler.Discoverer) *finder {
	t.Helper()
	f := &finder{t: t}
	run, err := d.Discover(scaler.DiscoverEnv{Logger: func() *slog.Logger { return quiet() }, Report: f.report})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.Close)
	return f
}

func (f *finder) report(found []scaler.Found, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
		return
	}
	f.lists++
	f.last, f.found = found, []string{}
	for _, one := range found {
		f.found = append(f.found, one.Object)
	}
	slices.Sort(f.found)
}

func (f *finder) has(objects ...string) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("the objects %v", objects), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.lists > 0 && slices.Equal(f.found, objects)
	})
}

func TestWorkloadsOfOtherNamespacesAreNotServices(t *testing.T) {
	s := newAPIServer(t)
	s.spaces = true
	for _, space := range []string{"red", "blue", "kube-system"} {
		s.annotate("Deployment", space, "web", map[string]string{"enable": "true", "namespace": "red"})
		s.annotate("StatefulSet", space, "db", map[string]string{"enable": "true"})
		s.annotate("ReplicaSet", space, "set", map[string]string{"enable": "true"})
	}
	config := s.kubeconfig()
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"red", "blue", "red"}, Kubeconfig: config}))
	f.has("deployment/web in namespace blue", "deployment/web in namespace red", "statefulset/db in namespace blue", "statefulset/db in namespace red")
	for _, one := range f.last {
		p, err := meant(one.Backend)
		if err != nil || p.workload.String()+" in namespace "+p.namespace != one.Object || p.kubeconfig != config {
			t.Errorf("%s has the backend %s (%v)", one.Object, one.Backend, err)
		}
	}

	all := find(t, discoverer(t, &Discoverer{AllNamespaces: true, Resources: []string{"deploy"}, Kubeconfig: config}))
	all.has("deployment/web in namespace blue", "deployment/web in namespace kube-system", "deployment/web in namespace red")
	s.do(func() { s.remove("deployments", "blue/web") })
	all.has("deployment/web in namespace kube-system", "deployment/web in namespace red")
}

func TestOtherKindsOfWorkloads(t *testing.T) {
	s := newAPIServer(t)
	on := map[string]string{"enable": "true", "port": "http"}
	s.annotate("CronJob", "default", "work", on)
	s.annotate("Foo", "default", "custom", on)
	s.annotate("ReplicaSet", "default", "own", on)
	s.annotate("Deployment", "default", "web", on)
	// A Deployment copies its annotations.
	s.annotate("ReplicaSet", "default", "web-1", on)
	s.change("replicasets", "web-1", func(o object) { owned(o, s.objects["deployments"]["web"], nil) })
	d := discoverer(t, &Discoverer{
		Namespaces: []string{"default"}, Kubeconfig: s.kubeconfig(), Resources: []string{"job", "foos.v1.example.com", "replicaset", "deployment"},
	})
	f := find(t, d)
	f.has("deployment/web in namespace default", "foos.v1.example.com/custom in namespace default", "job/work in namespace default", "replicaset/own in namespace default")
	for _, one := range f.last {
		if p, err := meant(one.Backend); err != nil || p.port != "http" || p.workload.String()+" in namespace default" != one.Object {
			t.Errorf("%s has the backend %s (%v)", one.Object, one.Backend, err)
		}
	}
}

func TestAWorkloadThatIsScaledIsNoNews(t *testing.T) {
	s := newAPIServer(t)
	s.annotate("Deployment", "default", "web", map[string]string{"enable": "true"})
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"default"}, Kubeconfig: s.kubeconfig()}))
	f.has("deployment/web in namespace default")
	for i := range 5 {
		s.change("deployments", "web", func(o object) {
			merge(o, object{"spec": object{"replicas": float64(i)}, "metadata": object{"annotations": object{ownerKey: fmt.Sprint(i)}}})
		})
	}
	// The next change tells that those before were seen.
	s.annotate("Deployment", "default", "api", map[string]string{"enable": "true"})
	f.has("deployment/api in namespace default", "deployment/web in namespace default")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lists != 2 {
		t.Errorf("%d lists of two changes", f.lists)
	}
}

func TestAWorkloadThatIsBeingDeletedIsNoService(t *testing.T) {
	s := newAPIServer(t)
	s.annotate("Deployment", "default", "web", map[string]string{"enable": "true"})
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"default"}, Kubeconfig: s.kubeconfig()}))
	f.has("deployment/web in namespace default")
	s.do(func() { s.markDeleted("deployments", "web") }) // a finalizer holds it
	f.has()
}

func TestANamespaceWithoutRightsHoldsUpNoOther(t *testing.T) {
	s := newAPIServer(t)
	s.spaces = true
	s.annotate("Deployment", "red", "web", map[string]string{"enable": "true"})
	s.refuse = func(c call) (int, string) {
		if c.space == "blue" {
			return http.StatusForbidden, "user cannot " + c.verb + " resource"
		}
		return 0, ""
	}
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"red", "blue"}, Resources: []string{"deployment"}, Kubeconfig: s.kubeconfig()}))
	f.has("deployment/web in namespace red")
	eventually(t, "the missing right", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.errs) == 1 && strings.Contains(f.errs[0].Error(), "deployments in namespace blue")
	})
	s.annotate("Deployment", "red", "api", map[string]string{"enable": "true"})
	f.has("deployment/api in namespace red", "deployment/web in namespace red")
}

func TestWithoutAnyRightNoServiceEnds(t *testing.T) {
	s := newAPIServer(t)
	s.refuse = func(c call) (int, string) { return http.StatusForbidden, "user cannot " + c.verb + " resource" }
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"default"}, Kubeconfig: s.kubeconfig()}))
	eventually(t, "the missing right", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.errs) == 1
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := errors.AsType[*scaler.Failure](f.errs[0]); !ok || f.lists != 0 {
		t.Errorf("%d lists, and the error %v", f.lists, f.errs[0])
	}
}

func TestDiscoveryWaitsForItsKubeconfig(t *testing.T) {
	s := newAPIServer(t)
	path := t.TempDir() + "/kubeconfig"
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"default"}, Kubeconfig: path}))
	eventually(t, "the missing file", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.errs) == 1
	})
	s.writeKubeconfig(path)
	f.has()
}

func TestDiscoveriesThatAreRefused(t *testing.T) {
	for words, d := range map[string]*Discoverer{
		"needs the namespaces":           {},
		"not both":                       {Namespaces: []string{"a"}, AllNamespaces: true},
		"the name is empty":              {Namespaces: []string{""}},
		"namespace ../x":                 {Namespaces: []string{"../x"}},
		"is not deployment":              {AllNamespaces: true, Resources: []string{"pod"}},
		"name the kind alone":            {AllNamespaces: true, Resources: []string{"deployment/web"}},
		"placeholder {env.NO_SUCH_THING": {Namespaces: []string{"{env.NO_SUCH_THING}"}},
	} {
		if err := d.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v does not say %q", d, err, words)
		}
	}
	if _, err := new(Discoverer).Discover(scaler.DiscoverEnv{}); err == nil {
		t.Error("what is not provisioned can begin")
	}
}

func TestTheDiscoveryInTheCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		"kubernetes {\n namespace red blue\n namespace {env.SPACE}\n resource deployment foos.v1.example.com\n kubeconfig /k\n context c\n}": `{"namespaces":["red","blue","{env.SPACE}"],"resources":["deployment","foos.v1.example.com"],"kubeconfig":"/k","context":"c"}`,
		"kubernetes {\n all_namespaces\n}": `{"all_namespaces":true}`,
	} {
		var d Discoverer
		if err := d.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, _ := json.Marshal(&d); string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
	for text, words := range map[string]string{
		"kubernetes":                                            "needs the namespaces",
		"kubernetes apps":                                       "takes no arguments",
		"kubernetes {\n namespace\n}":                           "one or more names",
		"kubernetes {\n namespace a/b\n}":                       "namespace a/b",
		"kubernetes {\n namespace a\n all_namespaces\n}":        "not both",
		"kubernetes {\n all_namespaces yes\n}":                  "takes no value",
		"kubernetes {\n namespace a\n resource pod\n}":          "is not deployment",
		"kubernetes {\n namespace a\n context\n}":               "exactly one value",
		"kubernetes {\n namespace a\n context b\n context c\n}": "twice",
		"kubernetes {\n namespace a\n port 80\n}":               "it knows namespace, all_namespaces",
	} {
		err := new(Discoverer).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v does not say %q", text, err, words)
		}
	}
}

func TestTheDiscoveryTakesTheSharedWayToTheCluster(t *testing.T) {
	shared := &Backend{Kubeconfig: "/shared", Context: "main", Namespace: "prod"}
	d := &Discoverer{Context: "own"}
	d.MergeDefaults(shared)
	if d.Kubeconfig != "/shared" || d.Context != "own" || len(d.Namespaces) > 0 {
		t.Errorf("%+v", d)
	}
	if err := d.Provision(caddy.Context{}); err == nil {
		t.Error("the shared namespace is a permission to discover")
	}
}

func TestAnotherDiscoveryHasAnotherFingerprint(t *testing.T) {
	seen := make(map[string]int)
	for i, d := range []Discoverer{
		{Namespaces: []string{"a"}},
		{Namespaces: []string{"a", "b"}},
		{AllNamespaces: true},
		{Namespaces: []string{"a"}, Context: "c"},
		{Namespaces: []string{"a"}, Kubeconfig: "/k"},
		{Namespaces: []string{"a"}, Resources: []string{"deployment"}},
	} {
		f := discoverer(t, &d).Fingerprint()
		if other, ok := seen[f]; ok {
			t.Errorf("configurations %d and %d have the same fingerprint", other, i)
		}
		seen[f] = i
	}
	a, b := discoverer(t, &Discoverer{Namespaces: []string{"b", "a", "b"}}), discoverer(t, &Discoverer{Namespaces: []string{"a", "b"}, Resources: []string{"deploy", "sts"}})
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("what means the same has other fingerprints")
	}
}

func TestTheManifestForDiscoveryGrantsExactlyTheRightsThatAreUsed(t *testing.T) {
	allowed := rightsOf(t, "discover-rights.yaml")
	s := newAPIServer(t)
	s.refuse = func(c call) (int, string) {
		if !allowed[c.verb+" "+c.resource] {
			return http.StatusForbidden, "the Role does not say: " + c.verb + " " + c.resource
		}
		return 0, ""
	}
	s.annotate("StatefulSet", "default", "db", map[string]string{"enable": "true"})
	f := find(t, discoverer(t, &Discoverer{Namespaces: []string{"default"}, Kubeconfig: s.kubeconfig()}))
	f.has("statefulset/db in namespace default")
	used := make(map[string]bool)
	eventually(t, "the watches", func() bool {
		for _, c := range s.made("") {
			used[c.verb+" "+c.resource] = true
		}
		return len(used) >= len(allowed)
	})
	for right := range allowed {
		if !used[right] {
			t.Errorf("granted and not used: %s", right)
		}
	}
}
