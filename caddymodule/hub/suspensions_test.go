package hub

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
	"github.com/caddy-usher/usher/scaler/control"
)

// memory is a storage in memory that can be made to fail.
type memory struct {
	certmagic.Storage

	mu    sync.Mutex
	files map[string][]byte
	fail  error
}

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	m.files[key] = value
	return nil
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	if b, ok := m.files[key]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if _, ok := m.files[key]; !ok {
		return fs.ErrNotExist
	}
	delete(m.files, key)
	return nil
}

func (m *memory) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	var keys []string
	for k := range m.files {
		if strings.HasPrefix(k, prefix+"/") {
			keys = append(keys, k)
		}
	}
	if keys == nil {
		return nil, fs.ErrNotExist
	}
	return keys, nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

var errDisk = errors.New("the disk is full")

func TestSuspensionIsStoredBeforeItIsSaid(t *testing.T) {
	t.Parallel()
	disk := &memory{files: make(map[string][]byte)}
	private := privateHub(t, disk)
	disk.setFail(errDisk)
	p := private.services["web"]
	if err := private.Suspend(t.Context(), p, "why"); !errors.Is(err, errDisk) || p.Loop.Status().State == control.Suspended {
		t.Errorf("%v, %s", err, p.Loop.Status().State)
	}
	disk.setFail(nil)
	if err := private.Suspend(t.Context(), p, "why"); err != nil || p.Loop.Status().State != control.Suspended {
		t.Errorf("%v, %s", err, p.Loop.Status().State)
	}
	// A restart: a new hub with the same storage.
	restarted := privateHub(t, disk)
	if r := restarted.services["web"]; r.Loop.Status().State != control.Suspended || r.suspension.Reason != "why" {
		t.Errorf("after a restart: %s", r.Loop.Status().State)
	}
	disk.setFail(errDisk)
	if err := private.resume(t.Context(), p); !errors.Is(err, errDisk) || p.Loop.Status().State != control.Suspended {
		t.Errorf("%v, %s", err, p.Loop.Status().State)
	}
	disk.setFail(nil)
	for range 2 { // what is not stored need not be deleted
		if err := private.resume(t.Context(), p); err != nil || p.Loop.Status().State == control.Suspended {
			t.Errorf("%v, %s", err, p.Loop.Status().State)
		}
	}
}

// privateHub is a hub of the test's own, with one service, web, and a
// configuration in force that uses the storage.
func privateHub(t *testing.T, disk *memory) *Hub {
	t.Helper()
	h, _ := learningHub(t, disk, nil)
	return h
}

// learningHub is a private hub whose service has a policy.
func learningHub(t *testing.T, disk *memory, policy scaler.Policy) (*Hub, *Generation) {
	t.Helper()
	h := newHub()
	s := h.Acquire("web")
	g := &Generation{Storage: disk, Services: map[string]*Service{"web": s}, Logger: zap.NewNop(), Settings: Globals{StartLimit: 8, MaxWaiting: 100}}
	if policy != nil {
		o := &Options{policy: policy, policyName: "adaptive", Service: ServiceConfig{Ready: &Readiness{Check: "platform"}}.WithDefaults()}
		o.Settings = o.Service.settings(policy)
		g.Definitions = map[string]*Definition{"web": {Options: o, Backend: &backendtest.Fake{Traits: scaler.Traits{Owned: true, OrdersBlind: true}}}}
	}
	if err := h.Activate(g); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	s.active = true
	h.mu.Unlock()
	t.Cleanup(func() { _ = h.closeAll() })
	return h, g
}

func TestSuspensionThatCannotBeReadHoldsAllTheSame(t *testing.T) {
	t.Parallel()
	disk := &memory{files: map[string][]byte{suspensionKey("web"): []byte("{"), suspensionKey("other"): []byte("{}")}}
	if s := privateHub(t, disk).services["web"]; s.Loop.Status().State != control.Suspended {
		t.Errorf("%s", s.Loop.Status().State)
	}
}

func TestStorageThatFailsAtLoadSuspendsNothing(t *testing.T) {
	t.Parallel()
	disk := &memory{files: map[string][]byte{suspensionKey("web"): []byte("{}")}, fail: errDisk}
	if s := privateHub(t, disk).services["web"]; s.Loop.Status().State == control.Suspended {
		t.Error("suspended")
	}
}

func TestSuspendingWithoutAConfigurationInForceIsAnError(t *testing.T) {
	t.Parallel()
	h := newHub()
	s := h.Acquire("web")
	if h.Suspend(t.Context(), s, "x") == nil || h.resume(t.Context(), s) == nil {
		t.Error("no error")
	}
	_ = h.closeAll()
}
