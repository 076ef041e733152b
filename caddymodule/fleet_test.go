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
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/scaler/control"
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

// TellsOutput implements scaler.OutputTeller.
func (b *testBackend) TellsOutput() bool { return b.Flavour != "silent" }

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

// fleet is what runs behind a testBackend: the fake backend of all tests, with
// real servers on loopback. They are started when they are ordered or, if
// manual, when the test says so.
type fleet struct {
	t    *testing.T
	name string
	fake backendtest.Fake

	// Set before it is opened, or within set.
	manual  bool
	openErr error
	fail    *scaler.Failure
	vouch   func(id string) error                // if set, the platform is one that vouches
	peer    func(id string, conn net.Conn) error // if set, the platform looks at connections; nil stands for a pin
	handler func(id string) http.Handler
	served  func(path string) // called by the handler serves

	// The fake's lock guards these.
	revs     []*fleetRevision
	flavours []string // of the revisions, in the order in which they were opened
	closed   int      // revisions
	changed  chan struct{}

	unpinned atomic.Int64
}

// fleetRevision is the scaler.Scaler.
type fleetRevision struct {
	*backendtest.Workload
	fleet *fleet
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
		f.set(func() {
			for _, r := range f.revs {
				for _, id := range r.IDs() {
					r.Remove(id)
				}
			}
		})
	})
	return f
}

// serves is a handler that tells which requests come.
func (f *fleet) serves(string) http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var served func(string)
		f.set(func() { served = f.served })
		if served != nil {
			served(r.URL.Path)
		}
	})
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
	f.set(func() {})
	opened, err := f.fake.Open(env)
	if err != nil {
		return nil, err
	}
	r := &fleetRevision{Workload: opened.(*backendtest.Workload), fleet: f}
	f.set(func() {
		f.revs = append(f.revs, r)
		f.flavours = append(f.flavours, flavour)
		f.signal()
	})
	switch {
	case f.vouch != nil:
		return verifyingRevision{r}, nil
	case f.peer != nil:
		return lookingRevision{r}, nil
	}
	return r, nil
}

// verifyingRevision is a scaler.Verifier and Confirmer, too.
type verifyingRevision struct{ *fleetRevision }

func (r verifyingRevision) Confirm(_ context.Context, id string) error { return r.fleet.vouch(id) }

func (r verifyingRevision) Verify(_ context.Context, id string) error { return r.fleet.vouch(id) }

// lookingRevision is a scaler.PeerChecker, too.
type lookingRevision struct{ *fleetRevision }

func (r lookingRevision) CheckPeer(id string, conn net.Conn) error { return r.fleet.peer(id, conn) }

func (r lookingRevision) Pin(id string) (address string, release func(), err error) {
	if err := r.fleet.peer(id, nil); err != nil {
		return "", nil, err
	}
	address, err = "", control.ErrGone
	r.fleet.set(func() {
		if i := r.Instance(id); i != nil {
			address, release, err = i.Address, func() { r.fleet.unpinned.Add(1) }, nil
		}
	})
	return address, release, err
}

// signal wakes the waiting goroutines after a change. The lock is held.
func (f *fleet) signal() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits until cond, which is called with the lock held.
func (f *fleet) until(what string, cond func() bool) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		var ok bool
		var changed chan struct{}
		f.set(func() { ok, changed = cond(), f.changed })
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
		return len(f.revs) > 0 && f.newest().Want == n
	})
}

// newest is the revision that was opened last.
func (f *fleet) newest() *fleetRevision { return f.revs[len(f.revs)-1] }

// set changes something with the lock held, and brings it to the fake.
func (f *fleet) set(change func()) {
	f.fake.Set(func() {
		change()
		k := &f.fake
		k.Traits = scaler.Traits{Owned: true, HoldsPlace: true, OrdersBlind: true, SameMachine: true}
		k.Place, k.Manual, k.OpenErr, k.Fail = f.serve, f.manual, f.openErr, nil
		if f.fail != nil {
			k.Fail = f.fail
		}
	})
}

// serve starts the server of an instance.
func (f *fleet) serve(id string) (network, address string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: f.handler(id), ReadHeaderTimeout: patience}}
	srv.Start()
	return "tcp", l.Addr().String(), func() { srv.CloseClientConnections(); srv.Close() }
}

// up starts what is ordered of the newest revision, and waits for the order:
// that a request waits only implies that it comes.
func (f *fleet) up() {
	f.t.Helper()
	f.until("an order", func() bool { return f.newest().Want > len(f.newest().IDs()) })
	f.fake.Fill()
}

// at adds an instance of the newest revision with its own address.
func (f *fleet) at(network, address string, stop func()) (id string) {
	f.fake.Do(func() { id = f.newest().StartAt(network, address, stop) })
	return id
}

// die ends an instance unasked.
func (f *fleet) die(id string) {
	f.set(func() {
		for _, r := range f.revs {
			r.End(id, &scaler.Failure{Reason: scaler.ReasonExit, Short: "exit status 1", Detail: "secret output line"})
		}
	})
}

// Scale implements scaler.Scaler.
func (r *fleetRevision) Scale(ctx context.Context, o scaler.Order) error {
	defer r.fleet.set(r.fleet.signal)
	return r.Workload.Scale(ctx, o)
}

// Close implements scaler.Scaler.
func (r *fleetRevision) Close(ctx context.Context, d time.Duration) error {
	err := r.Workload.Close(ctx, d)
	r.fleet.set(func() {
		r.fleet.closed++
		r.fleet.signal()
	})
	return err
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
