package hub

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/registry"
)

// SplitView is what is shown of a split.
type SplitView struct {
	Name      string          `json:"name"`
	By        string          `json:"by,omitempty"` // the placeholder
	OnFailing string          `json:"on_failing"`
	Sides     []SplitSideView `json:"sides"`

	// Who has set the weights at run time, and when; nil if they are those of the
	// configuration.
	Set *SplitSet `json:"set,omitempty"`
}

// SplitSideView is one side.
type SplitSideView struct {
	Service    string  `json:"service"`
	Weight     int     `json:"weight"`            // in force
	Share      float64 `json:"share"`             // of the requests, 0 to 1
	Configured int     `json:"configured_weight"` // in the configuration
}

// SplitSet says who has set weights at run time.
type SplitSet struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// View returns what is shown of s as it is now.
func (s *Split) View() *SplitView {
	w := s.weights.Load()
	v := &SplitView{Name: s.Name, By: s.Config.By, OnFailing: s.Config.OnFailing}
	sum := 0.0
	for _, n := range w.of {
		sum += n
	}
	for k, side := range s.Config.Sides {
		v.Sides = append(v.Sides, SplitSideView{Service: side.Service, Weight: int(w.of[k]), Share: w.of[k] / sum, Configured: side.Weight})
	}
	if w.set != nil {
		v.Set = &SplitSet{By: w.set.By, At: w.set.At}
	}
	return v
}

// Weights returns the weights in force.
func (v *SplitView) Weights() map[string]int {
	weights := make(map[string]int, len(v.Sides))
	for _, side := range v.Sides {
		weights[side.Service] = side.Weight
	}
	return weights
}

// ETag is a strong one. It changes when anything of v does.
func (v *SplitView) ETag() string {
	b, _ := json.Marshal(v) // texts and numbers can always be encoded
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// permits returns an error unless v is what the condition of a change is about.
func (v *SplitView) permits(ifMatch string) error {
	if ifMatch == "" {
		return &registry.Error{Kind: registry.ConditionNeeded, Message: "split " + v.Name + " has weights already: send the ETag of what is to be changed in If-Match"}
	}
	for tag := range strings.SplitSeq(ifMatch, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == v.ETag() {
			return nil
		}
	}
	return &registry.Error{Kind: registry.Stale, Message: "split " + v.Name + " has changed meanwhile: read it again"}
}

// splits returns the splits of all configurations; of those with the same name, that
// of the newest. The lock is held.
func (h *Hub) splits() map[string]*Split {
	all := make(map[string]*Split)
	for _, g := range h.generations {
		maps.Copy(all, g.Splits)
	}
	return all
}

// Splits returns what is shown of all splits, by name.
func (h *Hub) Splits() []*SplitView {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := []*SplitView{}
	splits := h.splits()
	for _, name := range slices.Sorted(maps.Keys(splits)) {
		all = append(all, splits[name].View())
	}
	return all
}

// Split returns what is shown of one; its error is of the type registry.Error.
func (h *Hub) Split(name string) (*SplitView, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.split(name)
	if err != nil {
		return nil, err
	}
	return s.View(), nil
}

// splitsOf returns the names of the splits of which a service is a side, be it by
// one of its revisions.
func (h *Hub) splitsOf(service string) (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, s := range h.splits() {
		if slices.ContainsFunc(s.sides, func(x side) bool { return x.service == service || x.derived == service }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// collectSplits reads the weights of the splits.
func (g *gaugeCollector) collectSplits(h *Hub, ch chan<- prometheus.Metric) {
	for _, v := range h.Splits() {
		for _, side := range v.Sides {
			ch <- prometheus.MustNewConstMetric(g.splitWeight, prometheus.GaugeValue, float64(side.Weight), v.Name, side.Service)
		}
	}
}

// forgetSplits removes the series of those sides of g that no configuration has any
// more. The lock is held.
func (h *Hub) forgetSplits(g *Generation) {
	for name, s := range g.Splits {
		for _, side := range s.Config.Sides {
			has := func(other *Generation) bool {
				o := other.Splits[name]
				return o != nil && slices.ContainsFunc(o.Config.Sides, func(x SplitSide) bool { return x.Service == side.Service })
			}
			if !slices.ContainsFunc(h.generations, has) {
				splitRequestsTotal.DeleteLabelValues(name, side.Service)
			}
		}
	}
}
