package registry_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

func TestCaddysWithOneStoreSeeEachOthersChanges(t *testing.T) {
	m := registrytest.NewMemory()
	a, b := newWorldOn(t, m), newWorldOn(t, m)
	first := a.put(a.owner("ann"), "shop", web("shop", "shop.example.com"))
	if err := b.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := b.Get("shop")
	if seen == nil || seen.ETag() != first.ETag() || seen.State() != first.State() || b.ByHost("shop.example.com") != "shop" {
		t.Fatalf("the other Caddy sees %+v", seen)
	}
	// Also without a look, at the next change: of two changes of the same ETag one counts.
	a.put(onlyIf(a.owner("ann"), first), "shop", web("one"))
	_, _, err := b.Put(t.Context(), onlyIf(b.owner("ann"), first), "shop", []byte(web("two")))
	b.want(err, registry.Stale, "has changed")
	if got := b.Get("shop").Current().Definition.Params["name"]; got != "one" {
		t.Errorf("the other Caddy has %s", got)
	}
	if err := a.Delete(t.Context(), onlyIf(a.owner("ann"), a.Get("shop")), "shop"); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(t.Context(), "shop", "none"); err != nil {
		t.Fatal(err)
	}
	b.wantTold("+shop", "shop 1>2", "-shop")
	// And one that starts later.
	if c := newWorldOn(t, m); c.Find("shop") == nil || c.Find("shop").DeletedBy != "ann@example.com" {
		t.Error("a third Caddy does not know the deleted service")
	}
}

func TestCaddysWithoutACommonStoreMergeWhatTheyAreTold(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	tell := func(record *registry.Record) {
		t.Helper()
		told, err := registry.DecodeRecord(registry.EncodeRecord(record))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Merge(t.Context(), told); err != nil {
			t.Fatal(err)
		}
	}
	first := a.put(a.owner("ann"), "shop", web("one"))
	tell(first)
	second := a.put(onlyIf(a.owner("ann"), first), "shop", web("two"))
	tell(second)
	tell(first) // late
	tell(second)
	if got := b.Get("shop"); got.ETag() != second.ETag() || got.State() != second.State() || len(got.Revisions) != 2 {
		t.Errorf("the other Caddy has %+v", got)
	}
	if err := a.FallBack(t.Context(), "shop", 2, "it crashes", a.now); err != nil {
		t.Fatal(err)
	}
	tell(a.Get("shop"))
	if b.Get("shop").FellBack == nil || b.Get("shop").InForce().Number != 1 {
		t.Error("the other Caddy does not know that the revision failed")
	}
	// A clock that goes back makes no change older.
	a.now = a.now.Add(-time.Hour)
	if err := a.Delete(t.Context(), onlyIf(a.owner("ann"), a.Get("shop")), "shop"); err != nil {
		t.Fatal(err)
	}
	tell(a.Stored("shop"))
	tell(second)
	b.wantTold("+shop", "shop 1>2", "shop 2>1", "-shop")
	if got := b.AllStored(); len(got) != 1 || !got[0].IsDeleted() {
		t.Errorf("the other Caddy has %+v", got)
	}
}

func TestARevisionThatFailsGivesWayToTheOneBefore(t *testing.T) {
	w := newWorld(t)
	put := func(name string) *registry.Record {
		t.Helper()
		call := w.owner("ann")
		if old := w.Get("shop"); old != nil {
			call.IfMatch = old.ETag()
		}
		return w.put(call, "shop", web(name))
	}
	fail := func(revision int) {
		t.Helper()
		if err := w.FallBack(t.Context(), "shop", revision, "it crashes", w.now); err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	w.want(w.FallBack(t.Context(), "shop", 1, "it crashes", w.now), registry.Conflict, "no earlier revision")
	second := put("two")
	fail(1) // is not current
	fail(2)
	fail(2)
	got := w.Get("shop")
	if got.InForce().Number != 1 || got.FellBack == nil || got.FellBack.Revision != 2 || got.FellBack.Reason != "it crashes" || got.ETag() != second.ETag() || got.State() == second.State() {
		t.Fatalf("after the failure it is %+v", got)
	}
	// The same again is a new try.
	if again := put("two"); again.FellBack != nil || again.ETag() != second.ETag() || again.InForce().Number != 2 {
		t.Fatalf("the new try is %+v", again)
	}
	fail(2)
	// A third one that fails does not fall back to the second, which failed, too.
	put("three")
	fail(3)
	if n := w.Get("shop").InForce().Number; n != 1 {
		t.Errorf("revision %d is in force", n)
	}
	w.wantTold("+shop", "shop 1>2", "shop 2>1", "shop 1>2", "shop 2>1", "shop 1>3", "shop 3>1")
	// To roll back to one that failed is a new try of it, too.
	back, err := w.Rollback(t.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop", 2)
	if err != nil || back.InForce().Number != 4 || back.InForce().Definition.Params["name"] != "two" {
		t.Errorf("the rollback made %+v, error %v", back, err)
	}
}

func TestRevisionsAreKeptAndRolledBack(t *testing.T) {
	w := newWorld(t)
	w.rules.KeepRevisions = 3
	w.Use(w.rules)
	record := w.put(w.owner("ann"), "shop", web("r1"))
	for _, name := range []string{"r2", "r3", "r4"} {
		record = w.put(onlyIf(w.owner("ann"), record), "shop", web(name))
	}
	var kept []int
	for _, rev := range record.Revisions {
		kept = append(kept, rev.Number)
	}
	if !slices.Equal(kept, []int{2, 3, 4}) {
		t.Errorf("kept are revisions %v", kept)
	}
	_, err := w.Rollback(t.Context(), onlyIf(w.owner("ann"), record), "shop", 1)
	w.want(err, registry.NotFound, "no such revision")
	record, err = w.Rollback(t.Context(), onlyIf(w.owner("ann"), record), "shop", 0)
	if err != nil || record.Current().Number != 5 || record.Current().Definition.Params["name"] != "r3" {
		t.Errorf("one back is %+v, error %v", record, err)
	}
	// The one that serves is kept, whatever fails after it.
	w.rules.KeepRevisions = 1
	w.Use(w.rules)
	for _, name := range []string{"r6", "r7", "r8"} {
		record = w.put(onlyIf(w.owner("ann"), record), "shop", web(name))
		if err := w.FallBack(t.Context(), "shop", record.Current().Number, "it crashes", w.now); err != nil {
			t.Fatal(err)
		}
		if got := w.Get("shop"); got.InForce().Number != 5 || len(got.Revisions) != 2 {
			t.Errorf("in force is %+v of %d", got.InForce(), len(got.Revisions))
		}
	}
}

// brokenStore fails on demand.
type brokenStore struct {
	registry.Store
	put  func(name string) error // before the record is written
	late error                   // after it was
	load map[string]string
}

func (s *brokenStore) Put(ctx context.Context, name string, record []byte) error {
	if s.put != nil {
		if err := s.put(name); err != nil {
			return err
		}
	}
	if err := s.Store.Put(ctx, name, record); err != nil {
		return err
	}
	return s.late
}

func (s *brokenStore) Load(ctx context.Context, name string) ([]byte, error) {
	if text, ok := s.load[name]; ok {
		return []byte(text), nil
	}
	return s.Store.Load(ctx, name)
}

func TestAStoreThatFailsIsNoChange(t *testing.T) {
	m := registrytest.NewMemory()
	w := newWorldOn(t, m)
	store := &brokenStore{Store: m.Open()}
	w.Registry = registry.New(store, func(old, next *registry.Record) { w.told = append(w.told, change(old, next)) })
	w.Use(w.rules)
	if w.Loaded() {
		t.Error("the records are known before Load")
	}
	if err := w.Load(t.Context()); err != nil || !w.Loaded() {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	store.put = func(string) error { return full }
	_, _, err := w.Put(t.Context(), w.owner("ann"), "shop", []byte(web("shop")))
	w.want(err, registry.StoreFailed, "disk full")
	if !errors.Is(err, full) || w.Find("shop") != nil {
		t.Errorf("after the failure there is %+v", w.Find("shop"))
	}
	// The store has written, and says it has not: the next change sees it.
	store.put, store.late = nil, full
	_, _, err = w.Put(t.Context(), w.owner("ann"), "shop", []byte(web("shop")))
	w.want(err, registry.StoreFailed, "disk full")
	store.late = nil
	_, _, err = w.Put(t.Context(), w.owner("ann"), "shop", []byte(web("shop")))
	w.want(err, registry.ConditionNeeded, "")
	w.wantTold("+shop")
}

func TestARecordThatCannotBeReadHarmsNoOther(t *testing.T) {
	m := registrytest.NewMemory()
	w := newWorldOn(t, m)
	for _, name := range []string{"bad", "good", "half", "newer", "other", "secret"} {
		w.put(w.owner("ann"), name, web("x"))
	}
	store := &brokenStore{Store: m.Open(), load: map[string]string{
		"bad": `{"version":1,"name":"bad","revisions":[]}`, "half": `{"version":1,"na`, "newer": `{"version":2,"name":"newer"}`,
		"other":  `{"version":1,"name":"good","revisions":[{"number":1,"definition":{"template":"web"}}]}`,
		"secret": `{"version":1,"name":"secret","revisions":[{"number":1,"definition":{"template":"web","command":"/bin/sh"}}]}`,
	}}
	w.Registry = registry.New(store, func(*registry.Record, *registry.Record) {})
	w.Use(w.rules)
	if err := w.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantRejected("", "no revisions", "", "cannot be read", "", "newer Usher", "", "record of good", "", "unknown field")
	if len(w.List()) != 1 || w.Get("good") == nil {
		t.Errorf("the services are %+v", w.List())
	}
	_, _, err := w.Put(t.Context(), w.owner("ann"), "bad", []byte(web("x")))
	w.want(err, registry.Conflict, "cannot be read")
	// It is repaired.
	store.load = nil
	if err := w.Refresh(t.Context(), "bad"); err != nil || w.Get("bad") == nil || len(w.Rejected()) != 4 {
		t.Errorf("after the repair there is %+v, error %v", w.Get("bad"), err)
	}
	// Another one is given up.
	operator := registry.Call{Operator: true, Now: w.now}
	w.want(w.Delete(t.Context(), operator, "half"), registry.Conflict, "If-Match: *")
	operator.IfMatch = "*"
	if err := w.Delete(t.Context(), operator, "half"); err != nil || w.Find("half") != nil || len(w.Rejected()) != 3 {
		t.Errorf("after the deletion there is %+v, error %v", w.Rejected(), err)
	}
	w.put(w.owner("bob"), "half", web("x"))
}

func TestAServiceThatFellBackIsFoundByTheHostsOfWhatIsInForce(t *testing.T) {
	m := registrytest.NewMemory()
	w := newWorldOn(t, m)
	first := w.put(w.owner("ann"), "shop", web("one", "old.example.com", "taken.example.com"))
	second := w.put(onlyIf(w.owner("ann"), first), "shop", web("two", "new.example.com"))
	// Its name is after that of shop: the order of names does not decide.
	w.put(w.owner("bob"), "tea", web("tea", "taken.example.com"))
	if err := w.FallBack(t.Context(), "shop", 2, "it crashes", w.now); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*world{w, newWorldOn(t, m)} {
		for host, want := range map[string]string{"old.example.com": "shop", "new.example.com": "shop", "taken.example.com": "tea"} {
			if got := c.ByHost(host); got != want {
				t.Errorf("%s leads to %q, want %q", host, got, want)
			}
		}
	}
	_, _, err := w.Put(t.Context(), w.owner("bob"), "bar", []byte(web("bar", "old.example.com")))
	w.want(err, registry.Conflict, "old.example.com")
	// The next revision lets the hosts of the one before go.
	w.put(onlyIf(w.owner("ann"), second), "shop", web("three", "new.example.com"))
	if got := w.ByHost("old.example.com"); got != "" {
		t.Errorf("old.example.com leads to %q", got)
	}
	if err := w.Delete(t.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop"); err != nil {
		t.Fatal(err)
	}
	if got := w.ByHost("new.example.com") + w.ByHost("old.example.com"); got != "" {
		t.Errorf("the hosts of a deleted service lead to %q", got)
	}
}

// What serves is the one before those.
func TestARevisionThatWasReplacedBeforeItRanIsNotGoneBackTo(t *testing.T) {
	w := newWorld(t)
	unproven := false
	w.rules.Unproven = func(string) bool { return unproven }
	w.rules.KeepRevisions = 2
	w.Use(w.rules)
	record := w.put(w.owner("ann"), "shop", web("one"))
	unproven = true // a first revision has none before it
	record = w.put(onlyIf(w.owner("ann"), record), "shop", web("two"))
	unproven = false
	record = w.put(onlyIf(w.owner("ann"), record), "shop", web("three"))
	for _, name := range []string{"four", "five", "six"} {
		record = w.put(onlyIf(w.owner("ann"), record), "shop", web(name))
		if got := record.InForce().Definition.Params["name"]; got != name || record.FellBack != nil {
			t.Errorf("%s: %s is in force", name, got)
		}
		unproven = true
	}
	if err := w.FallBack(t.Context(), "shop", 6, "it crashes", w.now); err != nil {
		t.Fatal(err)
	}
	if got := w.Get("shop").InForce().Definition.Params["name"]; got != "three" {
		t.Errorf("it goes back to %s", got)
	}
}
