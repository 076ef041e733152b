package hub

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/registry"
)

// withSplit is a configuration with a split of these weights.
func (h *Hub) withSplit(t *testing.T, storage *memory, v1, v2 int) *Generation {
	t.Helper()
	return &Generation{Storage: storage, Logger: zap.NewNop(), Splits: map[string]*Split{"shop": splitOf(t, h, "", SplitSide{"v1", v1}, SplitSide{"v2", v2})}}
}

func (h *Hub) reload(t *testing.T, before, now *Generation) {
	t.Helper()
	if err := h.Activate(now); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		h.Deactivate(before)
	}
}

func newStorage() *memory { return &memory{files: make(map[string][]byte)} }

func (m *memory) has(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.files[key]
	return ok
}

func set(t *testing.T, h *Hub, v1, v2 int) *SplitView {
	t.Helper()
	v, err := h.SetSplit(t.Context(), SplitChange{Name: "shop", Weights: map[string]int{"v1": v1, "v2": v2}, By: "the test", IfMatch: "*"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// expect checks the weights in force, and whether they were set at run time.
func expect(t *testing.T, h *Hub, v1, v2 int, atRunTime bool) {
	t.Helper()
	v, err := h.Split("shop")
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(v.Weights(), map[string]int{"v1": v1, "v2": v2}) || (v.Set != nil) != atRunTime {
		t.Errorf("the weights are %v, set at run time: %v; want %d and %d, %v", v.Weights(), v.Set != nil, v1, v2, atRunTime)
	}
}

func TestWeightsSetAtRunTimeOutliveReloadsAndRestarts(t *testing.T) {
	storage := newStorage()
	h := testHub(t)
	first := h.withSplit(t, storage, 90, 10)
	h.reload(t, nil, first)
	expect(t, h, 90, 10, false)
	set(t, h, 50, 50)
	expect(t, h, 50, 50, true)
	h.reload(t, first, h.withSplit(t, storage, 90, 10))
	expect(t, h, 50, 50, true)

	again := testHub(t)
	g := again.withSplit(t, storage, 90, 10)
	again.reload(t, nil, g)
	expect(t, again, 50, 50, true)
	if _, err := again.SetSplit(t.Context(), SplitChange{Name: "shop", IfMatch: "*"}); err != nil {
		t.Fatal(err)
	}
	expect(t, again, 90, 10, false)
	if storage.has(splitWeightsKey("shop")) {
		t.Error("what no longer holds is stored")
	}
}

func TestAConfigurationWithOtherWeightsIsNewer(t *testing.T) {
	storage := newStorage()
	h := testHub(t)
	first := h.withSplit(t, storage, 90, 10)
	h.reload(t, nil, first)
	set(t, h, 50, 50)
	second := h.withSplit(t, storage, 80, 20)
	h.reload(t, first, second)
	expect(t, h, 80, 20, false)
	// It is not only hidden.
	third := h.withSplit(t, storage, 90, 10)
	h.reload(t, second, third)
	expect(t, h, 90, 10, false)

	set(t, h, 50, 50)
	restarted := testHub(t)
	restarted.reload(t, nil, restarted.withSplit(t, storage, 80, 20))
	expect(t, restarted, 80, 20, false)
	if storage.has(splitWeightsKey("shop")) {
		t.Error("what no longer holds is stored")
	}
}

// While a reload is under way, both configurations serve. If the new one is
// withdrawn, nothing is lost.
func TestAWithdrawnConfigurationChangesNoWeights(t *testing.T) {
	storage := newStorage()
	h := testHub(t)
	first := h.withSplit(t, storage, 90, 10)
	h.reload(t, nil, first)
	set(t, h, 50, 50)
	second := h.withSplit(t, storage, 80, 20)
	if err := h.Activate(second); err != nil {
		t.Fatal(err)
	}
	if got := first.Splits["shop"].View().Weights(); got["v2"] != 50 {
		t.Errorf("the configuration of before has the weights %v", got)
	}
	h.Deactivate(second)
	expect(t, h, 50, 50, true)
	h.reload(t, first, h.withSplit(t, storage, 90, 10))
	expect(t, h, 50, 50, true)
}

func TestAChangeOfWeightsNeedsTheETagOfWhatItChanges(t *testing.T) {
	h := testHub(t)
	h.reload(t, nil, h.withSplit(t, newStorage(), 90, 10))
	v, err := h.Split("shop")
	if err != nil {
		t.Fatal(err)
	}
	change := func(ifMatch string, weights map[string]int) error {
		_, err := h.SetSplit(t.Context(), SplitChange{Name: "shop", Weights: weights, IfMatch: ifMatch})
		return err
	}
	if err := change("", map[string]int{"v1": 1, "v2": 1}); registry.KindOf(err) != registry.ConditionNeeded {
		t.Error(err)
	}
	if err := change(`"other", `+v.ETag(), map[string]int{"v1": 1, "v2": 1}); err != nil {
		t.Error(err)
	}
	if err := change(v.ETag(), map[string]int{"v1": 2, "v2": 1}); registry.KindOf(err) != registry.Stale {
		t.Error(err)
	}
	for _, weights := range []map[string]int{{"v1": 1}, {"v1": 1, "v2": 1, "v3": 1}, {"v1": 0, "v2": 0}, {"v1": 1, "v2": -1}, {}} {
		if err := change("*", weights); registry.KindOf(err) != registry.Invalid {
			t.Errorf("%v: %v", weights, err)
		}
	}
	expect(t, h, 1, 1, true)
	if _, err := h.Split("other"); registry.KindOf(err) != registry.NotFound {
		t.Error(err)
	}
}

func TestWeightsThatCannotBeStoredDoNotHold(t *testing.T) {
	storage := newStorage()
	h := testHub(t)
	h.reload(t, nil, h.withSplit(t, storage, 90, 10))
	storage.mu.Lock()
	storage.fail = errors.New("disk full")
	storage.mu.Unlock()
	_, err := h.SetSplit(t.Context(), SplitChange{Name: "shop", Weights: map[string]int{"v1": 1, "v2": 1}, IfMatch: "*"})
	if registry.KindOf(err) != registry.StoreFailed {
		t.Error(err)
	}
	expect(t, h, 90, 10, false)
}

// inForceWithSplit puts a configuration in force without what a cluster needs.
func (h *Hub) inForceWithSplit(g *Generation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applySplits(g, nil)
	h.generations = append(h.generations, g)
}

func TestWeightsThatAnotherCaddyHasSetHoldHere(t *testing.T) {
	h, m := joined(t)
	storage := newStorage()
	h.inForceWithSplit(h.withSplit(t, storage, 90, 10))
	b, err := json.Marshal(SplitWeights{Weights: map[string]int{"v1": 1, "v2": 3}, Configured: map[string]int{"v1": 90, "v2": 10}, By: "another"})
	if err != nil {
		t.Fatal(err)
	}
	weight := func() int { v, _ := h.Split("shop"); return v.Weights()["v2"] }
	m.Noted(m.driver.Put(noteSplit+"shop", string(b)))
	await(t, "they hold", func() bool { return weight() == 3 })
	if !storage.has(splitWeightsKey("shop")) || !storage.has("usher/cluster/split/shop") {
		t.Errorf("%v is stored", storage.files)
	}
	m.Noted(m.driver.Take(noteSplit + "shop"))
	await(t, "those of the configuration hold", func() bool { return weight() == 10 })

	// One with another configuration leaves them to the others.
	b, _ = json.Marshal(SplitWeights{Weights: map[string]int{"v1": 1, "v2": 3}, Configured: map[string]int{"v1": 80, "v2": 20}})
	m.Noted(m.driver.Put(noteSplit+"shop", string(b)))
	await(t, "they are stored", func() bool { return storage.has(splitWeightsKey("shop")) })
	if weight() != 10 {
		t.Error("weights hold that are for another configuration")
	}
	h.settleSplits()
	if m.driver.Note(noteSplit + "shop").Gone {
		t.Error("weights are dropped that are for another configuration")
	}
}

func TestWeightsThatAreSetHereAreToldToTheOthers(t *testing.T) {
	h, m := joined(t)
	storage := newStorage()
	h.inForceWithSplit(h.withSplit(t, storage, 90, 10))
	set(t, h, 50, 50)
	if w := splitWeightsOf(m.driver.Note(noteSplit + "shop")); w == nil || w.Weights["v2"] != 50 {
		t.Errorf("%+v", w)
	}
	if _, err := h.SetSplit(t.Context(), SplitChange{Name: "shop", IfMatch: "*"}); err != nil {
		t.Fatal(err)
	}
	if n := m.driver.Note(noteSplit + "shop"); !n.Gone {
		t.Errorf("%+v", n)
	}
}

// A Caddy that comes back to its cluster brings what it knew.
func TestWeightsAreBroughtIntoTheCluster(t *testing.T) {
	h, _ := joined(t)
	storage := newStorage()
	h.inForceWithSplit(h.withSplit(t, storage, 90, 10))
	set(t, h, 50, 50)
	again := testHub(t)
	g := again.withSplit(t, storage, 90, 10)
	g.Cluster = new(Cluster)
	notes := again.readNotes(g, nil, again.readSplits(g))
	if len(notes) != 1 || notes[0].Stamp.Count == 0 || splitWeightsOf(notes[0]).Weights["v2"] != 50 {
		t.Errorf("%+v", notes)
	}
	alone := newStorage()
	alone.files[splitWeightsKey("shop")] = storage.files[splitWeightsKey("shop")]
	g.Storage = alone
	notes = again.readNotes(g, nil, again.readSplits(g))
	if len(notes) != 1 || notes[0].Stamp != (cluster.Stamp{}) || splitWeightsOf(notes[0]).Weights["v2"] != 50 {
		t.Errorf("%+v", notes)
	}
}
