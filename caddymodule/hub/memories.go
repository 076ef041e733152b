package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
)

// memoriesPrefix is where the memories of policies are kept in Caddy's storage.
const memoriesPrefix = "usher/memory"

// saveEvery is how often the memories are stored that have changed. They are
// stored once more when Caddy exits.
const saveEvery = 10 * time.Minute

// storedMemory is what is stored of the memory of a service's policy.
type storedMemory struct {
	Policy string          `json:"policy"`
	Memory json.RawMessage `json:"memory"`
}

// memories are the services whose policies have learned something that is not
// stored yet.
type memories struct {
	mu    sync.Mutex
	fresh map[*Service]bool
	timer *time.Timer // nil while there are none
}

// learned takes note that s has something to store. It returns at once.
func (h *Hub) learned(s *Service) {
	if !s.remembers.Load() {
		return
	}
	m := &h.memories
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fresh == nil {
		m.fresh = make(map[*Service]bool)
	}
	m.fresh[s] = true
	if m.timer == nil && !h.exiting.Load() {
		m.timer = time.AfterFunc(saveEvery, func() {
			if storage, err := h.storage(); err == nil {
				h.saveMemories(storage)
			}
		})
	}
}

// take returns the services that have something to store, and begins anew.
func (m *memories) take() map[*Service]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := m.fresh
	m.fresh = nil
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	return fresh
}

// saveMemories stores what has changed. What cannot be stored is not tried
// again before it changes.
func (h *Hub) saveMemories(storage certmagic.Storage) {
	fresh := h.memories.take()
	if len(fresh) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	for s := range fresh {
		if err := s.saveMemory(ctx, storage); err != nil {
			s.Log().Warn("what the policy has learned could not be stored: after a restart it learns anew", zap.Error(err))
		}
	}
}

func (s *Service) saveMemory(ctx context.Context, storage certmagic.Storage) error {
	d := s.Current()
	if d == nil {
		return nil
	}
	policy, ok := d.policy.(scaler.Rememberer)
	memory := s.Loop.Memory()
	if !ok || memory == nil {
		return nil
	}
	raw, err := policy.EncodeMemory(memory)
	if err != nil {
		return err
	}
	b, err := json.Marshal(storedMemory{d.policyName, raw})
	if err != nil {
		return err
	}
	return storage.Store(ctx, path.Join(memoriesPrefix, s.Name), b)
}

// readMemories reads from the storage what the policies of those services of g
// have learned that have never been in force. The hub's lock is not held.
func (h *Hub) readMemories(g *Generation) map[string]scaler.Memory {
	found := make(map[string]scaler.Memory)
	remembers := func(d *Definition) bool {
		if d == nil {
			return false
		}
		_, ok := d.policy.(scaler.Rememberer)
		return ok
	}
	err := h.readStored(g, memoriesPrefix, remembers, func(s *Service, key string, b []byte, err error) {
		var m scaler.Memory
		if err == nil {
			m, err = g.Definitions[s.Name].decodeMemory(b)
		}
		if err != nil {
			g.Logger.Warn("what the policy has learned cannot be used and is dropped: it learns anew",
				zap.String("service", s.Name), zap.String("key", key), zap.Error(err))
			return
		}
		found[s.Name] = m
	})
	if err != nil {
		g.Logger.Warn("the storage does not tell what the policies have learned: they learn anew", zap.Error(err))
	}
	return found
}

func (d *Definition) decodeMemory(b []byte) (scaler.Memory, error) {
	var stored storedMemory
	if err := json.Unmarshal(b, &stored); err != nil {
		return nil, err
	}
	if stored.Policy != d.policyName {
		return nil, fmt.Errorf("it is of the policy %s, and the service has %s now", stored.Policy, d.policyName)
	}
	return d.policy.(scaler.Rememberer).DecodeMemory(stored.Memory)
}

// applyMemories gives the loops what was stored. The lock is held.
func (h *Hub) applyMemories(g *Generation, found map[string]scaler.Memory) {
	for name, m := range found {
		if s := g.Services[name]; s != nil {
			s.Loop.Recall(m)
		}
	}
}

// saveLast stores what has changed if g is the last configuration: Caddy exits.
func (h *Hub) saveLast(g *Generation) {
	h.mu.Lock()
	last := len(h.generations) == 1 && h.generations[0] == g
	h.mu.Unlock()
	if !last {
		return
	}
	for _, s := range h.All() {
		h.learned(s) // what is learned while the target stays the same, too
	}
	h.saveMemories(g.Storage)
}
