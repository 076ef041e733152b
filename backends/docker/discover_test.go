package docker

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discoverytest"
	"github.com/caddy-usher/usher/test/harness"
)

// named is a discoverytest.Platform: the containers of a scripted engine.
// Labels do not change, so a container with other labels is another one.
type named struct {
	server *scripted
	made   int
}

func (n *named) Put(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	n.Remove(t, name)
	all := map[string]string{"com.example.other": "x"}
	for key, value := range labels {
		all[scheme.Key(key)] = value
	}
	n.made++
	id := n.server.add(fmt.Sprintf("d%d", n.made), box{name: name, labels: all, created: time.Now().Unix()})
	n.server.change(id, func(*box) {}, "create")
}

func (n *named) Remove(_ *testing.T, name string) {
	s := n.server
	if id := s.idOf(name); id != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.containers, id)
		s.tell(id, "destroy")
	}
}

func (n *named) Away(*testing.T) { n.server.down() }
func (n *named) Back(*testing.T) { n.server.up() }

// idOf returns the id of the container of a name.
func (s *scripted) idOf(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, b := range s.containers {
		if b.name == name {
			return id
		}
	}
	return ""
}

// meant returns the plan of a description.
func meant(t *testing.T, backend json.RawMessage) (*plan, error) {
	t.Helper()
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
	err = provision(t, b)
	return b.plan, err
}

func discoverer(t *testing.T, d *Discoverer) *Discoverer {
	t.Helper()
	if err := d.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDiscoveryConforms(t *testing.T) {
	discoverytest.Run(t, func(t *testing.T) discoverytest.Setup {
		t.Parallel() // each check has a server of its own
		s := newScripted(t)
		s.add("ff", box{name: "none"})
		return discoverytest.Setup{
			Discoverer: discoverer(t, &Discoverer{Host: "unix://" + s.socket}),
			Platform:   &named{server: s}, Type: "docker", Key: scheme.Key,
			Means: func(backend json.RawMessage) (string, error) {
				p, err := meant(t, backend)
				if err != nil {
					return "", err
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				if p.form != formContainer || p.access.Host != "unix://"+s.socket {
					return "", fmt.Errorf("it means %s at %s", p, p.access.Host)
				}
				if b := s.containers[p.name]; b != nil {
					return b.name, nil
				}
				return "container that is gone", nil
			},
		}
	})
}

// A finder collects what a discovery reports.
type finder struct {
	t  *testing.T
	mu sync.Mutex

	lists int
	last  []scaler.Found
}

func find(t *testing.T, s *scripted) *finder {
	t.Helper()
	f := &finder{t: t}
	run, err := discoverer(t, &Discoverer{Host: "unix://" + s.socket}).Discover(scaler.DiscoverEnv{
		Logger: func() *slog.Logger { return slog.New(slog.DiscardHandler) }, Report: f.report,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.Close)
	return f
}

func (f *finder) report(found []scaler.Found, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.lists++
		f.last = found
	}
}

// objects returns what the latest list has.
func (f *finder) objects() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]string, len(f.last))
	for i, one := range f.last {
		all[i] = one.Object
	}
	return all
}

func (f *finder) has(objects ...string) {
	f.t.Helper()
	harness.Eventually(f.t, patience, func() bool {
		f.mu.Lock()
		lists := f.lists
		f.mu.Unlock()
		return lists > 0 && slices.Equal(f.objects(), objects)
	}, "%v to be found, not %v", objects, f.objects())
}

func TestContainersThatAreNoServices(t *testing.T) {
	s := newScripted(t)
	with := func(key, value string) map[string]string {
		return map[string]string{"usher.enable": "true", key: value}
	}
	s.add("a1", box{name: "made-of-an-image", labels: with(labelCaddy, "x")})
	s.add("a2", box{name: "run-once", labels: with(composeOneOff, "True")})
	s.add("a3", box{name: "leaving", labels: with("x", "y"), state: "removing"})
	s.add("a4", box{name: "stopped", labels: with("x", "y"), state: "exited"})
	s.add("a5", box{name: "serves", labels: with(composeOneOff, "False"), state: "running"})
	find(t, s).has("container serves", "container stopped")
}

func TestTheServiceIsOfTheContainerAndNotOfItsName(t *testing.T) {
	s := newScripted(t)
	n := &named{server: s}
	n.Put(t, "web", map[string]string{"enable": "true", "port": "8080"})
	id := s.idOf("web")
	f := find(t, s)
	f.has("container web")
	if p, err := meant(t, f.last[0].Backend); err != nil || p.name != id || p.port != 8080 {
		t.Errorf("the backend is %s (%v)", f.last[0].Backend, err)
	}
	// Another container takes the name.
	other := s.add("0f", box{name: "other"})
	s.change(id, func(b *box) { b.name = "old" }, "rename")
	s.change(other, func(b *box) { b.name = "web" }, "rename")
	f.has("container old")
	if p, err := meant(t, f.last[0].Backend); err != nil || p.name != id {
		t.Errorf("the backend is %s (%v)", f.last[0].Backend, err)
	}
}

func TestAContainerThatStartsAndStopsIsNoNews(t *testing.T) {
	s := newScripted(t)
	n := &named{server: s}
	n.Put(t, "web", map[string]string{"enable": "true"})
	f := find(t, s)
	f.has("container web")
	before := s.count("GET /containers/json")
	for range 5 {
		s.change(s.idOf("web"), func(*box) {}, "start", "kill=15", "die", "stop", "health_status: healthy")
	}
	n.Put(t, "api", map[string]string{"enable": "true"})
	f.has("container api", "container web")
	if asked := s.count("GET /containers/json") - before; asked != 1 || f.lists != 2 {
		t.Errorf("the engine was asked %d times for one container that came, and %d lists were reported", asked, f.lists)
	}
}

func TestALostEventIsMadeGood(t *testing.T) {
	s := newScripted(t)
	f := find(t, s)
	f.has()
	s.add("a1", box{name: "web", labels: map[string]string{"usher.enable": "true"}}) // no event
	s.cutStreams()
	f.has("container web")
}

func TestTheDiscoveryInTheCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		"docker": `{}`,
		"docker {\n host tcp://engine:2376\n ca_file /ca\n cert_file /c\n key_file /k\n}": `{"host":"tcp://engine:2376","ca_file":"/ca","cert_file":"/c","key_file":"/k"}`,
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
		"docker all":                            "takes no arguments",
		"docker {\n label x\n}":                 "it knows host, ca_file",
		"docker {\n host\n}":                    "exactly one value",
		"docker {\n host http://x\n}":           "give it as unix://",
		"docker {\n host unix:///a\n host b\n}": "twice",
	} {
		err := new(Discoverer).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v does not say %q", text, err, words)
		}
	}
}

func TestTheDiscoveryTakesTheSharedEngine(t *testing.T) {
	shared := &Backend{Host: "tcp://engine:2376", CAFile: "/ca", CertFile: "/c", KeyFile: "/k"}
	d := new(Discoverer)
	d.MergeDefaults(shared)
	if *d != (Discoverer{Host: "tcp://engine:2376", CAFile: "/ca", CertFile: "/c", KeyFile: "/k"}) {
		t.Errorf("%+v", d)
	}
	own := &Discoverer{Host: "unix:///own"}
	own.MergeDefaults(shared)
	if *own != (Discoverer{Host: "unix:///own"}) {
		t.Errorf("certificates go to another engine: %+v", own)
	}
	if discoverer(t, d).Fingerprint() == discoverer(t, own).Fingerprint() {
		t.Error("two engines have the same fingerprint")
	}
	if err := (&Discoverer{Host: "ftp://x"}).Provision(caddy.Context{}); err == nil {
		t.Error("a host that is none is not refused")
	}
	if _, err := new(Discoverer).Discover(scaler.DiscoverEnv{}); err == nil {
		t.Error("what is not provisioned can begin")
	}
}
