package kubernetes

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/caddy-usher/usher/scaler"
)

// answers are what an API server said, one after the other: a scale and lists
// of objects, then objects that have come, changed or gone.
type answers struct {
	Scale, Object object
	Pods, Sets    []object
	Changed, Gone []object
	Events        []object
}

// FuzzAnswersOfTheCluster hands objects of any form to what keeps the state
// of a workload. Whatever a cluster says, what is reported of it is sound.
func FuzzAnswersOfTheCluster(f *testing.F) {
	for _, seed := range []string{
		`{"Scale":{"metadata":{"uid":"d1","resourceVersion":"7"},"spec":{"replicas":2},"status":{"selector":"app=web"}},
		"Object":{"metadata":{"annotations":{"usher.caddyserver.com/scaled-by":"{\"by\":\"other/1\",\"time\":\"2025-01-01T00:00:00Z\"}"}},"spec":{"template":{},"ordinals":{"start":3}}},
		"Pods":[{"metadata":{"name":"web-1","uid":"a-b-c-d-e","labels":{"app":"web"},"resourceVersion":"8","creationTimestamp":"2025-01-01T00:00:00Z","ownerReferences":[{"kind":"ReplicaSet","name":"web","uid":"s1","controller":true}]},
		"spec":{"nodeName":"n1","containers":[{"name":"app","ports":[{"name":"http","containerPort":8080}]}],"initContainers":[{"name":"side","restartPolicy":"Always","ports":[{"containerPort":1,"protocol":"UDP"}]}]},
		"status":{"phase":"Running","podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}],
		"containerStatuses":[{"name":"app","restartCount":2,"state":{"running":{"startedAt":"2025-01-01T00:00:01Z"}},"lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled","message":"last words","finishedAt":"2025-01-01T00:00:00Z"}}}]}}],
		"Sets":[{"metadata":{"name":"web","uid":"s1","ownerReferences":[{"kind":"Deployment","name":"web","uid":"d1","controller":true}]},"spec":{"replicas":2},
		"status":{"conditions":[{"type":"ReplicaFailure","status":"True","reason":"FailedCreate","message":"exceeded quota: q"}]}}],
		"Changed":[{"metadata":{"name":"web-1","uid":"a-b-c-d-e","labels":{"app":"web"},"resourceVersion":"9","deletionTimestamp":"2025-01-01T00:00:09Z"}}],
		"Gone":[{"metadata":{"name":"web-1","uid":"a-b-c-d-e"}}],
		"Events":[{"lastTimestamp":"2025-01-01T00:00:00Z","message":"exceeded quota"}]}`,
		`{"Scale":{"spec":{"replicas":1},"status":{"selector":"app in (web)"}},"Pods":[{"metadata":{"name":"db-0","uid":"u","labels":{"app":"web"},"ownerReferences":[{"kind":"StatefulSet","controller":true,"uid":""}]},
		"status":{"phase":"Pending","podIPs":[{"ip":"fd00::1"}],"conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/3 nodes"}],
		"containerStatuses":[{"name":"app","state":{"waiting":{"reason":"ImagePullBackOff","message":"Back-off"}}}]},"spec":{"containers":[{"name":"app","ports":[{"containerPort":80}]}]}}]}`,
		`{"Scale":{"spec":{"replicas":-1},"status":{"selector":"x!=y"}},"Pods":[{"metadata":{"name":"p","uid":"1"},"status":{"podIP":"{http.request.host}"},"spec":{"containers":[{"ports":[{"containerPort":99999}]}]}},
		{"metadata":{"name":"q","uid":"2"},"status":{"phase":"Failed","reason":"Evicted","message":"x"}}]}`,
		`{"Scale":{"status":{"selector":""}}}`, `{"Pods":[null,{},{"metadata":null}]}`,
	} {
		for kind := range byte(4) {
			f.Add(seed, kind, []string{"", "http", "8080"}[kind%3])
		}
	}
	f.Fuzz(func(t *testing.T, text string, kind byte, port string) {
		var said answers
		if json.Unmarshal([]byte(text), &said) != nil || checkPort(port) != nil {
			return
		}
		resource := []string{"deployment/web", "statefulset/db", "replicaset/web", "foos.v1.example.com/x"}[kind%4]
		newFuzzed(t, resource, port).hears(said)
	})
}

// fuzzed is a runner without a cluster.
type fuzzed struct {
	*runner
	t *testing.T
}

func newFuzzed(t *testing.T, resource, port string) fuzzed {
	w, err := parseWorkload(resource)
	if err != nil {
		t.Fatal(err)
	}
	cl := &cluster{log: quiet(), namespaces: make(map[string]*namespace), scalers: make(map[string][]*runner), said: make(map[string]bool)}
	cl.ctx, cl.cancel = context.WithCancel(t.Context())
	x := fuzzed{t: t}
	r := &runner{
		plan: &plan{workload: w, port: port}, cluster: cl, ns: cl.join("default"), self: "self/1",
		finished: make(map[string]bool), reported: make(map[string]string), supersededIDs: make(map[string]string), news: make(chan struct{}),
		env: scaler.Env{Service: "web", Revision: "r1", Logger: quiet, Report: x.reported},
	}
	r.ctx, r.cancel = context.WithCancel(t.Context())
	// What it would do by itself is to ask the cluster.
	r.wake.closed = true
	cl.enter(r)
	r.ns.members[r] = true
	x.runner = r
	return x
}

// hears takes in what a cluster says, and reports after each piece of it.
func (x fuzzed) hears(said answers) {
	r := x.runner
	fill(r.ns.pods, said.Pods)
	fill(r.ns.sets, said.Sets)
	r.report()
	s, failure := r.newScale(wrap(said.Scale))
	if failure != nil {
		x.sound(failure)
		r.trouble = failure
		r.report()
		return
	}
	obj := wrap(said.Object)
	s.ownership = readOwnership(obj.GetAnnotations())
	s.start = int(number(child(child(obj.Object, "spec"), "ordinals"), "start"))
	r.scale = s
	r.selector.Store(&s.selector)
	r.report()
	for _, o := range items(said.Changed) {
		r.ns.pods.update(&o)
		r.ns.sets.update(&o)
		r.report()
	}
	for _, o := range items(said.Gone) {
		r.ns.pods.remove(&o)
		r.ns.sets.remove(&o)
		r.report()
	}
	for _, e := range items(said.Events) {
		eventTime(&e)
		x.sound(refused(text(e.Object, "message")))
	}
	r.cluster.enter(&runner{plan: r.plan, ns: r.ns, env: r.env})
	r.report()
}

// fill lets a mirror have a list.
func fill[T identified](m *mirror[T], all []object) {
	list := make(map[string]T)
	for _, u := range items(all) {
		list[m.key(&u)] = m.convert(&u)
	}
	m.replace(list)
}

// items are those objects that an API server could hold: their names are names.
func items(all []object) (list []unstructured.Unstructured) {
	for _, o := range all {
		u := wrap(o)
		if len(validation.IsDNS1123Subdomain(u.GetName())) == 0 && len(validation.IsDNS1123Subdomain(string(u.GetUID()))) == 0 {
			list = append(list, *u)
		}
	}
	return list
}

// reported checks a report: nothing in it may lead a request astray.
func (x fuzzed) reported(rep scaler.Report) {
	if rep.Desired < 0 {
		x.t.Errorf("it works towards %d instances", rep.Desired)
	}
	x.sound(rep.Trouble)
	if rep.Hold != nil {
		x.sound(rep.Hold.Failure)
	}
	living := make(map[string]bool)
	for _, in := range rep.Instances {
		x.sound(in.Failure)
		x.sound(in.Delay)
		if in.ID == "" || living[in.ID] && in.Phase != scaler.PhaseEnded {
			x.t.Errorf("an id that is no name of one instance: %q of %+v", in.ID, rep.Instances)
		}
		living[in.ID] = true
		if (in.Network == "") != (in.Address == "") {
			x.t.Errorf("half an address: %+v", in)
		}
		if in.Address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(in.Address)
		if n, atoi := strconv.Atoi(port); err != nil || atoi != nil || n < 1 || n > 65535 || net.ParseIP(host) == nil {
			x.t.Errorf("%q is no address of a pod", in.Address)
		}
	}
}

// sound checks that a failure says something.
func (x fuzzed) sound(f *scaler.Failure) {
	if f != nil && (f.Short == "" || f.Reason == "") {
		x.t.Errorf("a failure without a word: %#v", f)
	}
}
