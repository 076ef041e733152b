package hub

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
	"github.com/caddy-usher/usher/reserver"
)

// keeping is a hub with a registry in which services can be made of a template. None of
// them runs.
func keeping(t *testing.T) (*Hub, *keeper) {
	t.Helper()
	h := testHub(t)
	k := &keeper{hub: h, made: make(map[string]*madeService), varied: make(map[string]map[string]bool)}
	k.registry = registry.New(registrytest.NewMemory().Open(), func(_, _ *registry.Record) {})
	service := json.RawMessage(`{"backend": {"type": "process", "command": "run", "args": ["{param.SIZE}"]}}`)
	params := map[string]registry.Param{"SIZE": {OneOf: []string{"small", "large"}, Default: new("small"), Request: true}}
	template, err := registry.NewTemplate(service, params, func(...string) bool { return true }, 1000)
	if err != nil {
		t.Fatal(err)
	}
	k.registry.Use(registry.Rules{Templates: map[string]*registry.Template{"web": template}, AllowTemplates: []string{"web"}})
	if err := k.registry.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.keeper.Store(k)
	return h, k
}

func (k *keeper) putForTest(t *testing.T, name, by string) {
	t.Helper()
	if _, _, err := k.registry.Put(t.Context(), registry.Call{By: by, Operator: true, Now: time.Now()}, name, []byte(`{"template": "web"}`)); err != nil {
		t.Fatal(err)
	}
}

// The lock is held while the storage is read, and each variant that is made is told to
// the whole cluster.
func TestAVariantThatThereIsIsFoundWithoutTheLockHoweverItsParamsAreGiven(t *testing.T) {
	t.Parallel()
	h, k := keeping(t)
	k.putForTest(t, "shop", "")
	shop, large := &Service{Name: "shop", Hub: h}, &Service{Name: "large", Hub: h}
	made := &Made{Service: shop}
	k.names.set("shop", made)
	name, _, err := k.registry.Variant("shop", map[string]string{"SIZE": "large"})
	if err != nil {
		t.Fatal(err)
	}
	k.derived.set(name, &Made{Service: large})
	k.working.Lock()
	defer k.working.Unlock()
	found := make(chan error, 1)
	go func() {
		for size, want := range map[string]*Service{"small": shop, "large": large} {
			if s, err := h.Variant(made, map[string]string{"SIZE": size}); s != want || err != nil {
				found <- fmt.Errorf("%s: service %v, error %w", size, s, err)
				return
			}
		}
		found <- nil
	}()
	select {
	case err := <-found:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a request waits for the lock")
	}
}

// A message has a greatest size, and a member that was away can lack all services.
func TestAMemberGetsAllRecordsInAnswersOfABoundedSize(t *testing.T) {
	t.Parallel()
	a, from := keeping(t)
	_, to := keeping(t)
	const n = 300
	for i := range n {
		from.putForTest(t, fmt.Sprintf("s%d", i), strings.Repeat("x", 20_000))
	}
	leader := &membership{hub: a}
	to.putForTest(t, "own", "")
	var lacking []string
	for more, answers := true, 0; more; answers++ {
		if answers > n {
			t.Fatal("it does not end")
		}
		known := make(map[string]string)
		for _, r := range to.registry.AllStored() {
			known[r.Name] = r.State()
		}
		r, err := leader.replyAllMade(known)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(r)
		if err != nil || len(b) > 4<<20 {
			t.Fatalf("an answer has %d bytes, error %v", len(b), err)
		}
		lacking = r.Lacking
		more = to.take(t.Context(), reply{Records: r.Records}) && r.More
	}
	if from.sums()[0] == to.sums()[0] {
		t.Error("the sums are equal, and what is known is not")
	}
	for _, r := range to.registry.AllStored() {
		from.merge(r)
	}
	if from.sums()[0] != to.sums()[0] {
		t.Error("the sums differ, and what is known does not")
	}
	if got := len(to.registry.AllStored()); got != n+1 {
		t.Errorf("it knows %d services, want %d", got, n+1)
	}
	if len(lacking) != 1 || lacking[0] != "own" {
		t.Errorf("the other one lacks %q", lacking)
	}
}

// Else its requests would wait here for instances that are not started any more.
func TestAVariantThatTheLeaderHasEndedEndsHere(t *testing.T) {
	t.Parallel()
	h, k := keeping(t)
	k.putForTest(t, "shop", "")
	params := map[string]string{"SIZE": "large"}
	name, _, err := k.registry.Variant("shop", params)
	if err != nil {
		t.Fatal(err)
	}
	k.working.Lock()
	m := &madeService{name: name, record: k.registry.Get("shop"), params: params, variant: true}
	k.derive("shop", m)
	k.derived.set(name, &Made{Service: &Service{Name: name}})
	k.derived.set(m.key(), &Made{Service: &Service{Name: name}})
	k.working.Unlock()
	follower := &membership{hub: h}
	if !follower.Told("leader", newsVariantGone, []byte(name)) {
		t.Error("the leader does not pass it on")
	}
	h.background.Wait()
	k.working.Lock()
	defer k.working.Unlock()
	if k.made[name] != nil || k.derived.find(name) != nil || k.derived.find(m.key()) != nil || len(k.registry.Variants("shop")) != 0 {
		t.Error("the variant is still there")
	}
}

// Where each Caddy has instances of its own, the one that leads sees no request of the
// others, and would delete what only they use.
func TestTheLeaderLearnsOfWhatIsUsedAtOthersAlone(t *testing.T) {
	t.Parallel()
	h, k := keeping(t)
	k.putForTest(t, "shop", "")
	s := newService(h, "shop")
	defer func() { _ = s.Loop.Close(t.Context()) }()
	m := &madeService{name: "shop", record: k.registry.Get("shop"), service: s}
	k.made["shop"] = m
	now := time.Now()
	if m.look(now) {
		t.Error("it was used before there was a request")
	}
	s.Reserver.Add("one", "", "tcp", "127.0.0.1:1", 1)
	var r reserver.Reservation
	if ready, err := s.Reserver.Reserve(&r, reserver.Ask{}); !ready || err != nil {
		t.Fatalf("no slot: %v", err)
	}
	if !m.look(now) || m.used != now || !m.look(now) {
		t.Error("a request is not seen for as long as it is inside")
	}
	r.Release(reserver.Answered)
	if m.look(now) {
		t.Error("a request is seen when it has gone")
	}
	m.used = time.Time{}
	(&membership{hub: h}).Told("follower", newsUsed, []byte(`["shop", "none"]`))
	h.background.Wait()
	k.working.Lock()
	defer k.working.Unlock()
	if time.Since(m.used) > time.Minute {
		t.Error("what was told is not noted")
	}
}
