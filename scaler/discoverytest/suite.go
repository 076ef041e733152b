package discoverytest

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// patience is how long a check waits for what should happen soon.
const patience = 30 * time.Second

// A Platform is what a discovery watches, as its administrator sees it.
type Platform interface {
	// Put makes an object, or changes the labels of the one of that name. They
	// are Usher's keys as in scaler.Found: "idle-timeout". "enable" is among
	// them if the object is to be a service.
	Put(t *testing.T, name string, labels map[string]string)

	// Remove takes the object away.
	Remove(t *testing.T, name string)

	// Away makes the platform unreachable, until Back.
	Away(t *testing.T)
	Back(t *testing.T)
}

// A Setup is a discovery with its platform, made for one check.
type Setup struct {
	Discoverer scaler.Discoverer
	Platform   Platform

	// Type is the name of the backend of what is found.
	Type string

	// Means decodes and provisions the description of a backend, and returns
	// the name of the object that it means, as it was given to Put.
	Means func(backend json.RawMessage) (string, error)

	// Key returns a key as it is written on the platform.
	Key func(key string) string

	// Secrets must not be shown.
	Secrets []string
}

// Run runs the suite. setup is called once for each check, on a platform without
// objects that are services. It may call t.Parallel.
func Run(t *testing.T, setup func(t *testing.T) Setup) {
	for name, check := range map[string]func(*bench){
		"an object appears, changes and goes":                   lives,
		"only what is enabled is a service":                     enabled,
		"an object that lies is only itself":                    lies,
		"a value is no placeholder":                             placeholders,
		"changes that follow each other closely are few lists":  settles,
		"a platform that is away ends no service":               outage,
		"what happens while the platform is away is found then": missed,
		"nothing is reported after the end":                     closed,
		"a configuration is shown without its secrets":          redacted,
	} {
		t.Run(name, func(t *testing.T) { check(open(t, setup(t))) })
	}
}

// bench is a discovery that runs.
type bench struct {
	*testing.T
	Setup
	discovery scaler.Discovery

	mu      sync.Mutex
	reports []report
	inside  bool // a report is being delivered
}

type report struct {
	found []scaler.Found
	err   error
}

func open(t *testing.T, s Setup) *bench {
	t.Helper()
	b := &bench{T: t, Setup: s}
	d, err := s.Discoverer.Discover(scaler.DiscoverEnv{
		Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) },
		Report: b.report,
	})
	if err != nil {
		t.Fatalf("the discovery does not begin: %v", err)
	}
	b.discovery = d
	t.Cleanup(d.Close)
	b.list("the first list, which is empty", func(all map[string]scaler.Found) bool { return len(all) == 0 })
	return b
}

func (b *bench) report(found []scaler.Found, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inside {
		b.Error("two reports come at a time")
	}
	b.inside = true
	defer func() { b.inside = false }()
	if err != nil && found != nil {
		b.Error("a report has a list and an error")
	}
	b.reports = append(b.reports, report{found, err})
}

// list waits until the latest list is as wanted, and returns it by the names of
// the objects that the backends mean. An object with a problem is there by what
// it is called.
func (b *bench) list(what string, is func(map[string]scaler.Found) bool) map[string]scaler.Found {
	b.Helper()
	var last map[string]scaler.Found
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if all, ok := b.latest(); ok {
			if last = b.byName(all); is(last) {
				return last
			}
		}
	}
	b.Fatalf("waited in vain for: %s; the last list is %+v", what, last)
	return nil
}

// latest returns the latest list.
func (b *bench) latest() ([]scaler.Found, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range slices.Backward(b.reports) {
		if r.err == nil {
			return r.found, true
		}
	}
	return nil, false
}

func (b *bench) byName(found []scaler.Found) map[string]scaler.Found {
	b.Helper()
	all := make(map[string]scaler.Found)
	for _, f := range found {
		if f.Object == "" || f.Name == "" || f.Since.IsZero() {
			b.Errorf("found is something without its object, name or time: %+v", f)
		}
		if f.Problem != "" {
			if len(f.Backend) > 0 {
				b.Errorf("%s has a problem and a backend", f.Object)
			}
			all[f.Object] = f
			continue
		}
		var backend struct{ Type string }
		if err := json.Unmarshal(f.Backend, &backend); err != nil || backend.Type != b.Type {
			b.Errorf("%s has the backend %s (%v)", f.Object, f.Backend, err)
		}
		name, err := b.Means(f.Backend)
		if err != nil {
			b.Errorf("the backend of %s cannot be used: %v", f.Object, err)
		}
		if _, twice := all[name]; twice {
			b.Errorf("%s is found twice", name)
		}
		all[name] = f
	}
	return all
}

// counts returns how many lists and errors were reported.
func (b *bench) counts() (lists, errs int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.reports {
		if r.err != nil {
			errs++
		} else {
			lists++
		}
	}
	return lists, errs
}

// has waits until exactly these objects are found.
func (b *bench) has(names ...string) map[string]scaler.Found {
	b.Helper()
	return b.list(fmt.Sprintf("the objects %v", names), func(all map[string]scaler.Found) bool {
		return slices.Equal(slices.Sorted(maps.Keys(all)), names)
	})
}

// on returns labels that make a service.
func on(more ...string) map[string]string {
	labels := map[string]string{"enable": "true"}
	for i := 0; i+1 < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return labels
}

func lives(b *bench) {
	began := time.Now().Add(-time.Minute) // clocks differ, and platforms round
	b.Platform.Put(b.T, "web", on("hosts", "web.example", "idle-timeout", "5m"))
	f := b.has("web")["web"]
	if !maps.Equal(f.Labels, map[string]string{"hosts": "web.example", "idle-timeout": "5m"}) || f.Name != "web" || len(f.Ignored) > 0 {
		b.Errorf("found is %+v", f)
	}
	if !strings.Contains(f.Object, "web") {
		b.Errorf("the object is called %s", f.Object)
	}
	if f.Since.Before(began) || f.Since.After(time.Now().Add(time.Minute)) {
		b.Errorf("the object was made at %s", f.Since)
	}
	b.Platform.Put(b.T, "api", on("name", "shop-api"))
	if f := b.has("api", "web")["api"]; f.Labels["name"] != "shop-api" {
		b.Errorf("found is %+v", f)
	}
	b.Platform.Put(b.T, "web", on("hosts", "www.example"))
	b.list("the other host", func(all map[string]scaler.Found) bool {
		return len(all) == 2 && maps.Equal(all["web"].Labels, map[string]string{"hosts": "www.example"})
	})
	b.Platform.Put(b.T, "web", map[string]string{"hosts": "www.example"})
	b.has("api")
	b.Platform.Remove(b.T, "api")
	b.has()
	b.Platform.Put(b.T, "web", on())
	b.has("web")
	b.Platform.Remove(b.T, "web")
	b.has()
}

func enabled(b *bench) {
	b.Platform.Put(b.T, "app-a", nil)
	b.Platform.Put(b.T, "app-b", map[string]string{"enable": "false", "hosts": "b.example"})
	b.Platform.Put(b.T, "app-c", map[string]string{"enable": "True"})
	b.Platform.Put(b.T, "app-d", map[string]string{"hosts": "d.example"})
	b.Platform.Put(b.T, "app-e", on())
	b.has("app-e")
}

func lies(b *bench) {
	b.Platform.Put(b.T, "other", nil)
	b.Platform.Put(b.T, "web", on())
	honest := b.has("web")["web"]
	forbidden := []string{
		"command", "args", "image", "env", "user", "dir", "address", "host", "owner", "backend", "type", "resource", "namespace", "compose",
		"app", "url", "kubeconfig", "volume", "template", "params", "fallback", "label", "copies", "privileged", "max-instances",
	}
	evil := on()
	for _, key := range forbidden {
		evil[key] = "other"
	}
	b.Platform.Put(b.T, "web", evil)
	f := b.list("what is ignored", func(all map[string]scaler.Found) bool { return len(all["web"].Ignored) > 0 })["web"]
	var want []string
	for _, key := range forbidden {
		want = append(want, b.Key(key))
	}
	slices.Sort(want)
	if !slices.Equal(f.Ignored, want) {
		b.Errorf("ignored are\n%q, not\n%q", f.Ignored, want)
	}
	if len(f.Labels) > 0 {
		b.Errorf("labels that are forbidden are taken: %v", f.Labels)
	}
	if name, _ := b.Means(f.Backend); name != "web" || fields(b.T, f.Backend) != fields(b.T, honest.Backend) {
		b.Errorf("the backend is %s, and of the honest object %s", f.Backend, honest.Backend)
	}
}

// fields returns which fields a description has, without their values.
func fields(t *testing.T, backend json.RawMessage) string {
	t.Helper()
	var all map[string]json.RawMessage
	if err := json.Unmarshal(backend, &all); err != nil {
		t.Fatal(err)
	}
	return strings.Join(slices.Sorted(maps.Keys(all)), " ")
}

func placeholders(b *bench) {
	for _, key := range []string{"port", "hosts", "ready"} {
		b.Platform.Put(b.T, "web", on(key, "{env.PATH}"))
		b.list("the problem of "+key, func(all map[string]scaler.Found) bool {
			for _, f := range all {
				return len(all) == 1 && strings.Contains(f.Problem, b.Key(key)) && !strings.Contains(f.Problem, "/bin")
			}
			return false
		})
	}
	b.Platform.Put(b.T, "web", on("port", "no port at all"))
	b.list("the problem of the port", func(all map[string]scaler.Found) bool {
		for _, f := range all {
			return strings.Contains(f.Problem, "no port at all")
		}
		return false
	})
	b.Platform.Put(b.T, "web", on())
	b.has("web")
}

func settles(b *bench) {
	before, _ := b.counts()
	began := time.Now()
	var want []string
	for i := range 12 {
		name := fmt.Sprintf("web%02d", i)
		b.Platform.Put(b.T, name, on())
		want = append(want, name)
	}
	b.has(want...)
	lists, _ := b.counts()
	// At most one each 100 ms.
	if most := int(time.Since(began)/(100*time.Millisecond)) + 1; lists-before > most {
		b.Errorf("%d lists within %s", lists-before, time.Since(began))
	}
}

func outage(b *bench) {
	b.Platform.Put(b.T, "web", on())
	b.has("web")
	lists, _ := b.counts()
	b.Platform.Away(b.T)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, errs := b.counts(); errs > 0 {
			break
		}
		if time.Now().After(deadline) {
			b.Fatal("that the platform is away is not reported")
		}
	}
	time.Sleep(2 * time.Second) // long enough for several attempts
	after, errs := b.counts()
	if after != lists {
		b.Errorf("%d lists while the platform was away", after-lists)
	}
	if errs > 2 { // a connection that breaks can be another reason than one that is refused
		b.Errorf("that the platform is away was reported %d times", errs)
	}
	b.Platform.Back(b.T)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if after, _ := b.counts(); after > lists {
			break
		}
		if time.Now().After(deadline) {
			b.Fatal("that the platform is back is not reported")
		}
	}
	b.has("web")
}

func missed(b *bench) {
	b.Platform.Put(b.T, "stays", on())
	b.Platform.Put(b.T, "goes", on())
	b.has("goes", "stays")
	b.Platform.Away(b.T)
	b.Platform.Remove(b.T, "goes")
	b.Platform.Put(b.T, "comes", on())
	b.Platform.Back(b.T)
	b.has("comes", "stays")
	b.Platform.Remove(b.T, "stays")
	b.has("comes")
}

func closed(b *bench) {
	b.Platform.Put(b.T, "web", on())
	b.has("web")
	b.Platform.Put(b.T, "api", on())
	b.discovery.Close()
	lists, errs := b.counts()
	b.discovery.Close()
	b.Platform.Remove(b.T, "web")
	time.Sleep(500 * time.Millisecond)
	if l, e := b.counts(); l != lists || e != errs {
		b.Errorf("%d lists and %d errors after the end", l-lists, e-errs)
	}
}

func redacted(b *bench) {
	text, err := json.Marshal(b.Discoverer.Redacted())
	if err != nil {
		b.Fatal(err)
	}
	for _, secret := range b.Secrets {
		if strings.Contains(string(text), secret) {
			b.Errorf("the secret %q is shown: %s", secret, text)
		}
	}
	if first, again := b.Discoverer.Fingerprint(), b.Discoverer.Fingerprint(); first == "" || first != again {
		b.Errorf("the fingerprints are %q and %q", first, again)
	}
}
