package hub

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// inForce makes a generation with a service the one in force.
func (h *Hub) inForce(t *testing.T, storage *memory) *Service {
	t.Helper()
	s := newService(h, "web")
	s.active = true
	h.mu.Lock()
	h.services["web"] = s
	h.generations = append(h.generations, &Generation{Storage: storage, Logger: zap.NewNop()})
	h.mu.Unlock()
	t.Cleanup(func() { _ = s.Loop.Close(context.Background()) })
	return s
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("it does not happen that %s", what)
}

// A second Caddy suspends and resumes: this one does the same, and keeps it.
func TestASuspensionOfAnotherCaddyHoldsHere(t *testing.T) {
	h, m := joined(t)
	storage := &memory{files: make(map[string][]byte)}
	s := h.inForce(t, storage)
	b, err := json.Marshal(Suspension{Reason: "for the night"})
	if err != nil {
		t.Fatal(err)
	}
	m.Noted(m.driver.Put(noteSuspended+"web", string(b)))
	await(t, "it is suspended", func() bool { return s.Loop.Status().State == control.Suspended })
	if sus := s.Suspended(); sus == nil || sus.Reason != "for the night" {
		t.Errorf("%+v", sus)
	}
	await(t, "it is stored", func() bool {
		storage.mu.Lock()
		defer storage.mu.Unlock()
		return len(storage.files) == 2
	})
	m.Noted(m.driver.Take(noteSuspended + "web"))
	await(t, "it is resumed", func() bool { return s.Loop.Status().State != control.Suspended })
	storage.mu.Lock()
	defer storage.mu.Unlock()
	if _, ok := storage.files[suspensionKey("web")]; ok || len(storage.files) != 1 {
		t.Errorf("%v is stored", storage.files)
	}
}

func TestWhatIsSuspendedHereIsToldToTheOthers(t *testing.T) {
	h, m := joined(t)
	s := h.inForce(t, &memory{files: make(map[string][]byte)})
	if err := h.Suspend(t.Context(), s, "for the test"); err != nil {
		t.Fatal(err)
	}
	n := m.driver.Note(noteSuspended + "web")
	if n.Gone || suspensionOf(n).Reason != "for the test" {
		t.Errorf("%+v", n)
	}
	if err := h.resume(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if n := m.driver.Note(noteSuspended + "web"); !n.Gone {
		t.Errorf("%+v", n)
	}
}

// A Caddy that was away while a service was resumed does not bring the suspension
// back.
func TestTheLatestWordAboutASuspensionOutlivesCaddy(t *testing.T) {
	storage := &memory{files: make(map[string][]byte)}
	h, _ := joined(t)
	s := h.inForce(t, storage)
	if err := h.Suspend(t.Context(), s, "for the test"); err != nil {
		t.Fatal(err)
	}
	g := &Generation{Storage: storage, Logger: zap.NewNop(), Cluster: new(Cluster)}
	again := newHub()
	t.Cleanup(again.cancel)
	was := again.readNotes(g, map[*Service]*Suspension{s: {Reason: "stored beside it"}}, nil)
	if len(was) != 1 || was[0].Stamp.Count == 0 {
		t.Fatalf("%+v", was)
	}
	board := cluster.NewBoard("other")
	board.Merge(was)
	resumed := board.Take(noteSuspended + "web")
	board = cluster.NewBoard("again")
	board.Merge(was)
	if board.Merge([]cluster.Note{resumed}); !board.Get(noteSuspended + "web").Gone {
		t.Error("the older word holds")
	}

	// One of before there was a cluster is older than any word of it.
	alone := &Generation{Storage: &memory{files: make(map[string][]byte)}, Logger: zap.NewNop(), Cluster: new(Cluster)}
	before := again.readNotes(alone, map[*Service]*Suspension{s: {Reason: "alone"}}, nil)
	if len(before) != 1 || before[0].Stamp != (cluster.Stamp{}) || suspensionOf(before[0]).Reason != "alone" {
		t.Errorf("%+v", before)
	}
}

// The word of a Caddy that led before may arrive after the first one of the next,
// which may have nothing more to say for a long time.
func TestOneThatLeadsTellsItsAccountAgainAfterThatOfAnother(t *testing.T) {
	m, s := placing(t)
	if err := s.Loop.SetBackend(idle{}); err != nil {
		t.Fatal(err)
	}
	m.Lead(true, 1)
	key := noteAccount + s.Name
	await(t, "it tells that it has decided", func() bool { return !m.driver.Note(key).Gone })
	k, _ := m.of(s.Name, nil)
	await(t, "it has no more to say", func() bool {
		k.pacing.Lock()
		defer k.pacing.Unlock()
		return !k.accountDue && time.Since(k.accounted) > accountPause
	})
	m.Noted(m.driver.Put(key, `{"Status":{"State":"failing"}}`))
	await(t, "it tells its account again", func() bool { return accountOf(m.driver.Note(key)).Status.State == control.Asleep })
}

// idle is a platform on which nothing runs.
type idle struct{}

func (idle) Open(env scaler.Env) (scaler.Scaler, error) {
	env.Report(scaler.Report{})
	return idle{}, nil
}

func (idle) Fingerprint() string { return "idle" }

func (idle) Redacted() any { return nil }

func (idle) Scale(context.Context, scaler.Order) error { return nil }

func (idle) Traits() scaler.Traits { return scaler.Traits{} }

func (idle) Close(context.Context, time.Duration) error { return nil }

func TestTheNotesOfAServiceEndWithIt(t *testing.T) {
	m, s := placing(t)
	keys := []string{noteAccount + s.Name, noteRefused + s.Name}
	for _, key := range keys {
		m.driver.Put(key, "{}")
	}
	m.Lead(true, 1)
	m.unshare(s)
	for _, key := range keys {
		await(t, key+" is taken away", func() bool { return m.driver.Note(key).Gone })
	}
	m.account(s) // of a decision of before
	if !m.driver.Note(keys[0]).Gone {
		t.Error("there is an account of a service that is gone")
	}
}
