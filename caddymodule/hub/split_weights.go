package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/registry"
)

// Operators can change the weights of a split while Caddy runs. Such weights are kept
// in Caddy's storage, and told to the other Caddys of a cluster, as suspensions are.
// They hold in place of the weights of the configuration for as long as it has the
// same weights: a configuration with other weights is newer.

// SplitWeights are weights that an operator has set. They do not change.
type SplitWeights struct {
	Weights    map[string]int `json:"weights"`    // by the names of the sides
	Configured map[string]int `json:"configured"` // those of the configuration, in place of which they hold
	By         string         `json:"by"`
	At         time.Time      `json:"at"`
}

// setWeights is what is known of the weights that were set for a split.
type setWeights struct {
	*SplitWeights      // nil: none
	held          bool // they were in force here
}

// replaces reports whether the weights hold in place of those of s.
func (w *SplitWeights) replaces(s *Split) bool {
	return w != nil && maps.Equal(w.Configured, s.given())
}

// sameWeights reports whether two are the same, or none.
func sameWeights(a, b *SplitWeights) bool {
	if a == nil || b == nil {
		return a == b
	}
	return maps.Equal(a.Weights, b.Weights) && maps.Equal(a.Configured, b.Configured) && a.By == b.By && a.At.Equal(b.At)
}

// splitWeightsPrefix is where the weights are kept in Caddy's storage.
const splitWeightsPrefix = "usher/split"

func splitWeightsKey(name string) string { return path.Join(splitWeightsPrefix, name) }

// noteSplit, before the name of a split, is the key of the note on the board of a
// cluster that has the weights that were set for it.
const noteSplit = "split/"

// readSplits reads from the storage what was set for those splits of g of which that
// is not known yet. The hub's lock is not held.
func (h *Hub) readSplits(g *Generation) map[string]*SplitWeights {
	found := make(map[string]*SplitWeights)
	for name := range g.Splits {
		h.mu.Lock()
		_, known := h.splitWeights[name]
		h.mu.Unlock()
		if known {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
		b, err := g.Storage.Load(ctx, splitWeightsKey(name))
		cancel()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		w := new(SplitWeights)
		if err == nil {
			err = json.Unmarshal(b, w)
		}
		if err != nil {
			g.Logger.Error("the weights that were set for a split cannot be read: those of the configuration hold", zap.String("split", name), zap.Error(err))
			continue
		}
		found[name] = w
	}
	return found
}

// applySplits puts the weights of the splits of g in force. stored are those that
// the storage has. The lock is held.
func (h *Hub) applySplits(g *Generation, stored map[string]*SplitWeights) {
	m := h.member.Load()
	for name, s := range g.Splits {
		known, ok := h.splitWeights[name]
		if !ok {
			known = &setWeights{SplitWeights: stored[name]}
			if m != nil {
				known.SplitWeights = splitWeightsOf(m.driver.Note(noteSplit + name))
			}
			h.splitWeights[name] = known
		}
		if !known.replaces(s) {
			s.use(nil)
			continue
		}
		if !known.held {
			g.Logger.Info("the split has the weights that were set at run time", zap.String("split", name), zap.Any("weights", known.Weights), zap.String("by", known.By), zap.Time("at", known.At))
		}
		known.held = true
		s.use(known.SplitWeights)
	}
}

// settleSplits drops the weights in place of which the configuration in force has
// others, once no other configuration is left that they hold for. In a cluster it
// leaves those alone that never held here: they may be for a configuration that
// this Caddy gets later.
func (h *Hub) settleSplits() {
	h.operating.Lock()
	defer h.operating.Unlock()
	var outdated []string
	h.mu.Lock()
	if len(h.generations) == 1 {
		g := h.generations[0]
		for name, known := range h.splitWeights {
			s := g.Splits[name]
			if s != nil && known.replaces(s) {
				continue
			}
			if known.SplitWeights != nil && (known.held || h.member.Load() == nil) {
				outdated = append(outdated, name)
			}
			if s == nil {
				delete(h.splitWeights, name)
			} else if known.SplitWeights != nil && (known.held || h.member.Load() == nil) {
				h.splitWeights[name] = new(setWeights)
			}
		}
	}
	logger := h.logs.logger
	h.mu.Unlock()
	for _, name := range outdated {
		logger.Info("the configuration has changed the split: the weights that were set at run time hold no longer", zap.String("split", name))
		ctx, cancel := context.WithTimeout(h.ctx, storageTimeout)
		if err := h.keepSplit(ctx, name, nil); err != nil {
			logger.Warn("the weights that were set for a split at run time could not be taken out of the storage", zap.String("split", name), zap.Error(err))
		}
		h.tellSplit(ctx, name, nil)
		cancel()
	}
}

// split returns the split of that name of the newest configuration that has one, and
// an error if there is none. The lock is held.
func (h *Hub) split(name string) (*Split, error) {
	for _, g := range slices.Backward(h.generations) {
		if s := g.Splits[name]; s != nil {
			return s, nil
		}
	}
	return nil, &registry.Error{Kind: registry.NotFound, Message: "there is no split " + name}
}

// SplitChange is a change of the weights of a split.
type SplitChange struct {
	Name    string
	Weights map[string]int // of all sides; nil for those of the configuration
	By      string         // for the log
	IfMatch string         // as the header has it: the ETags of the view that may be changed, or `*`
}

// SetSplit changes the weights of a split, for good: it returns when that is stored
// and in force here. Errors about the change itself are of the type registry.Error.
func (h *Hub) SetSplit(ctx context.Context, c SplitChange) (*SplitView, error) {
	h.operating.Lock()
	defer h.operating.Unlock()
	h.mu.Lock()
	s, err := h.split(c.Name)
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	before := s.View()
	if err := before.permits(c.IfMatch); err != nil {
		return nil, err
	}
	var set *SplitWeights
	if c.Weights != nil {
		if err := s.checkWeights(c.Weights); err != nil {
			return nil, &registry.Error{Kind: registry.Invalid, Message: fmt.Sprintf("split %s: %v", c.Name, err)}
		}
		set = &SplitWeights{Weights: c.Weights, Configured: s.given(), By: c.By, At: time.Now().UTC().Truncate(time.Millisecond)}
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := h.keepSplit(ctx, c.Name, set); err != nil {
		return nil, &registry.Error{Kind: registry.StoreFailed, Message: fmt.Sprintf("split %s keeps its weights, because others could not be stored: %v", c.Name, err), Err: err}
	}
	h.tellSplit(ctx, c.Name, set)
	h.putSplit(c.Name, set)
	now := s.View()
	h.logs.logger.Info("weights of a split changed at run time", zap.String("split", c.Name), zap.Any("from", before.Weights()), zap.Any("to", now.Weights()), zap.String("by", c.By))
	return now, nil
}

// checkWeights checks weights that an operator sets.
func (s *Split) checkWeights(weights map[string]int) error {
	given := s.given()
	for service := range weights {
		if _, ok := given[service]; !ok {
			return fmt.Errorf("%s is none of its sides", service)
		}
	}
	for _, side := range s.Config.Sides {
		if _, ok := weights[side.Service]; !ok {
			return fmt.Errorf("the weight of %s is missing: give those of all sides", side.Service)
		}
	}
	return checkWeights(weights)
}

// putSplit puts weights in force, in all configurations that they hold for.
func (h *Hub) putSplit(name string, set *SplitWeights) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := &setWeights{SplitWeights: set}
	h.splitWeights[name] = known
	for _, g := range h.generations {
		s := g.Splits[name]
		switch {
		case s == nil:
		case known.replaces(s):
			known.held = true
			s.use(set)
		default:
			s.use(nil)
		}
	}
}

// keepSplit keeps in the storage what was set for a split.
func (h *Hub) keepSplit(ctx context.Context, name string, set *SplitWeights) error {
	storage, err := h.storage()
	if err != nil {
		return err
	}
	key := splitWeightsKey(name)
	if set == nil {
		if err := storage.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("deleting %s: %w", key, err)
		}
		return nil
	}
	b, err := json.Marshal(set)
	if err != nil {
		return err
	}
	if err := storage.Store(ctx, key, b); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// tellSplit tells the other Caddys of a cluster what was set for a split here.
// Without a cluster a note of an earlier one is forgotten: it is older. The
// operating lock is held.
func (h *Hub) tellSplit(ctx context.Context, name string, set *SplitWeights) {
	m := h.member.Load()
	if m == nil {
		if storage, err := h.storage(); err == nil {
			_ = storage.Delete(ctx, noteKey(noteSplit+name)) // mostly there is none
		}
		return
	}
	var n cluster.Note
	if set == nil {
		n = m.driver.Take(noteSplit + name)
	} else if b, err := json.Marshal(set); err == nil { // texts and numbers can always be encoded
		n = m.driver.Put(noteSplit+name, string(b))
	}
	m.keepNote(ctx, n)
}

// splitWeightsOf returns what a note says; nil if that is nothing.
func splitWeightsOf(n cluster.Note) *SplitWeights {
	w := new(SplitWeights)
	if n.Gone || json.Unmarshal([]byte(n.Value), w) != nil {
		return nil
	}
	return w
}

// followSplit does here what the latest note about a split says.
func (m *membership) followSplit(name string) {
	h := m.hub
	h.operating.Lock()
	defer h.operating.Unlock()
	n := m.driver.Note(noteSplit + name)
	set := splitWeightsOf(n)
	ctx, cancel := context.WithTimeout(h.ctx, storageTimeout)
	defer cancel()
	m.keepNote(ctx, n)
	if err := h.keepSplit(ctx, name, set); err != nil {
		m.log().Error("another Caddy has changed the weights of a split, and that could not be stored here: they hold until this Caddy ends", zap.String("split", name), zap.Error(err))
	}
	h.mu.Lock()
	known := h.splitWeights[name]
	s, err := h.split(name)
	h.mu.Unlock()
	if err != nil || known != nil && sameWeights(known.SplitWeights, set) {
		return
	}
	h.putSplit(name, set)
	m.log().Info("the weights of a split are changed: another Caddy of the cluster was asked to", zap.String("split", name), zap.Any("weights", s.View().Weights()))
	if set != nil && !set.replaces(s) {
		m.log().Warn("the weights that another Caddy has set for a split do not hold here, because the configuration is another one: give all Caddys the same", zap.String("split", name))
	}
}

// splitNotes are the notes that a Caddy brings into a cluster of what was set before
// there was one.
func splitNotes(stored map[string]*SplitWeights, known map[string]bool) (notes []cluster.Note) {
	for name, w := range stored {
		if key := noteSplit + name; !known[key] {
			if b, err := json.Marshal(w); err == nil {
				notes = append(notes, cluster.Note{Key: key, Value: string(b)})
			}
		}
	}
	return notes
}
