package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(testBackend{})
	caddy.RegisterModule(notABackend{})
}

// testBackend is the description of a fleet: a backend of which the test
// decides everything.
type testBackend struct {
	Fleet   string `json:"fleet,omitempty"`
	Flavour string `json:"flavour,omitempty"`
	Secret  string `json:"secret,omitempty"`
}

func (testBackend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.test", New: func() caddy.Module { return new(testBackend) }}
}

// UnmarshalCaddyfile reads `test <fleet> [<flavour> [<secret>]]`.
func (b *testBackend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.NextArg() {
		return d.ArgErr()
	}
	b.Fleet = d.Val()
	if d.NextArg() {
		b.Flavour = d.Val()
	}
	if d.NextArg() {
		b.Secret = d.Val()
	}
	return nil
}

func (b *testBackend) Fingerprint() string { return b.Fleet + "/" + b.Flavour + "/" + b.Secret }

func (b *testBackend) Redacted() any {
	shown := *b
	if shown.Secret != "" {
		shown.Secret = "***"
	}
	return shown
}

func (b *testBackend) Open(env scaler.Env) (scaler.Scaler, error) {
	v, ok := fleets.Load(b.Fleet)
	if !ok {
		return nil, &scaler.Failure{Reason: scaler.ReasonNotFound, Short: "no fleet " + b.Fleet}
	}
	return v.(*fleet).open(env, b.Flavour)
}

// notABackend is a module in the namespace of backends that is none.
type notABackend struct{}

func (notABackend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.teapot", New: func() caddy.Module { return new(notABackend) }}
}

func (*notABackend) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

var fleets sync.Map

// fleet is what runs behind a testBackend: real servers on loopback, started
// when they are ordered or, if manual, when the test says so.
type fleet struct {
	t    *testing.T
	name string

	mu       sync.Mutex
	manual   bool
	openErr  error
	fail     *scaler.Failure
	vouch    func(id string) error // if set, the platform is one that vouches
	handler  func(id string) http.Handler
	revs     []*fleetRevision
	made     int
	flavours []string // of the revisions, in the order in which they were opened
	closed   int      // revisions
	changed  chan struct{}
}

// fleetRevision is the scaler.Scaler.
type fleetRevision struct {
	fleet   *fleet
	env     scaler.Env
	want    int
	running []*fleetInstance
	trouble *scaler.Failure
}

type fleetInstance struct {
	scaler.Instance
	stop func()
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return newFleetNamed(t, serviceFor(t))
}

func newFleetNamed(t *testing.T, name string) *fleet {
	t.Helper()
	f := &fleet{t: t, name: name, changed: make(chan struct{})}
	f.handler = func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Instance", id)
			_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, b)
		})
	}
	if _, taken := fleets.LoadOrStore(f.name, f); taken {
		t.Fatalf("the fleet %s exists: a second one is made by secondFleet", f.name)
	}
	t.Cleanup(func() {
		fleets.Delete(f.name)
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range f.revs {
			for _, i := range r.running {
				go i.stop()
			}
		}
	})
	return f
}

// secondFleet is one more in the same test.
func secondFleet(t *testing.T) *fleet {
	t.Helper()
	name := serviceFor(t)
	return newFleetNamed(t, "other."+name[:min(50, len(name))])
}

// serviceFor names the service of a test.
func serviceFor(t *testing.T) string {
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.TrimPrefix(t.Name(), "Test")))
	if len(name) > 60 {
		name = name[len(name)-60:]
	}
	return "s" + strings.TrimLeft(name, "-")
}

func (f *fleet) open(env scaler.Env, flavour string) (scaler.Scaler, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.openErr != nil {
		return nil, f.openErr
	}
	r := &fleetRevision{fleet: f, env: env}
	f.revs = append(f.revs, r)
	f.flavours = append(f.flavours, flavour)
	f.signal()
	r.report()
	if f.vouch != nil {
		return vouchingRevision{r}, nil
	}
	return r, nil
}

// vouchingRevision is a scaler.Voucher and Confirmer, too.
type vouchingRevision struct{ *fleetRevision }

func (r vouchingRevision) Confirm(_ context.Context, id string) error { return r.fleet.vouch(id) }

func (r vouchingRevision) Vouch(_ context.Context, id string) error { return r.fleet.vouch(id) }

// signal tells who waits that something has changed. The lock is held.
func (f *fleet) signal() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits until cond, which is called with the lock held.
func (f *fleet) until(what string, cond func() bool) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		ok, changed := cond(), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("%s: %s does not come", f.name, what)
		}
	}
}

// ordered waits until the newest revision is told to be n.
func (f *fleet) ordered(n int) {
	f.t.Helper()
	f.until(fmt.Sprintf("the order of %d", n), func() bool {
		return len(f.revs) > 0 && f.revs[len(f.revs)-1].want == n
	})
}

func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// up starts what is ordered of the newest revision, and waits for the order:
// that a request waits only implies that it comes.
func (f *fleet) up() {
	f.t.Helper()
	f.until("an order", func() bool {
		r := f.revs[len(f.revs)-1]
		return r.want > len(r.running)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.revs[len(f.revs)-1]
	r.fill()
	r.report()
}

// at adds an instance of the newest revision with its own address.
func (f *fleet) at(network, address string, stop func()) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.revs[len(f.revs)-1]
	id := r.add(network, address, stop)
	r.report()
	return id
}

// die ends an instance unasked.
func (f *fleet) die(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.revs {
		for k, i := range r.running {
			if i.ID == id {
				ended := i.Instance
				ended.Phase, ended.Failure = scaler.PhaseEnded, &scaler.Failure{Reason: scaler.ReasonExit, Short: "exit status 1", Detail: "secret output line"}
				r.running = append(r.running[:k:k], r.running[k+1:]...)
				go i.stop()
				r.report(ended)
				return
			}
		}
	}
}

func (r *fleetRevision) add(network, address string, stop func()) string {
	r.fleet.made++
	id := fmt.Sprintf("%s-i%d", r.env.Revision, r.fleet.made)
	r.running = append(r.running, &fleetInstance{
		Instance: scaler.Instance{ID: id, Network: network, Address: address, Phase: scaler.PhaseReady, Since: time.Now()},
		stop:     stop,
	})
	return id
}

// fill starts what is missing. The lock is held.
func (r *fleetRevision) fill() {
	for len(r.running) < r.want {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		var srv *httptest.Server
		id := r.add("tcp", l.Addr().String(), func() { srv.CloseClientConnections(); srv.Close() })
		srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: r.fleet.handler(id), ReadHeaderTimeout: patience}}
		srv.Start()
	}
}

func (r *fleetRevision) report(ended ...scaler.Instance) {
	rep := scaler.Report{Instances: ended, Desired: len(r.running), Trouble: r.trouble}
	if r.fleet.manual {
		rep.Desired = max(rep.Desired, r.want)
	}
	for _, i := range r.running {
		rep.Instances = append(rep.Instances, i.Instance)
	}
	r.env.Report(rep)
}

func (r *fleetRevision) Traits() scaler.Traits { return scaler.Traits{Local: true} }

func (r *fleetRevision) Scale(_ context.Context, o scaler.Order) error {
	f := r.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.signal()
	if f.fail != nil {
		return f.fail
	}
	for _, id := range o.Stop {
		for k, i := range r.running {
			if i.ID == id {
				r.running = append(r.running[:k:k], r.running[k+1:]...)
				go i.stop()
				break
			}
		}
	}
	r.want = o.Instances
	if !f.manual {
		r.fill()
	}
	r.report()
	return nil
}

func (r *fleetRevision) Close(context.Context, time.Duration) error {
	f := r.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range r.running {
		go i.stop()
	}
	r.running = nil
	f.closed++
	f.signal()
	return nil
}

func (f *fleet) definition(options ...string) string {
	return "backend test " + f.name + "\n" + strings.Join(options, "\n")
}

// mustJSON encodes v.
func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
