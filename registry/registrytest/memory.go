package registrytest

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/caddy-usher/usher/registry"
)

// Memory is where stores in memory keep their records. Each Store of it is one that a
// process of its own would have.
type Memory struct {
	lock chan struct{}

	mu      sync.Mutex
	records map[string][]byte
	changes []change
}

type change struct {
	name string
	by   *memoryStore
}

// NewMemory returns an empty one.
func NewMemory() *Memory {
	return &Memory{lock: make(chan struct{}, 1), records: make(map[string][]byte)}
}

// Open returns a store of m.
func (m *Memory) Open() registry.Store { return &memoryStore{m} }

type memoryStore struct{ m *Memory }

func (s *memoryStore) Lock(ctx context.Context) (func(), error) {
	select {
	case s.m.lock <- struct{}{}:
		return func() { <-s.m.lock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *memoryStore) List(context.Context) ([]string, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return slices.Collect(maps.Keys(s.m.records)), nil
}

func (s *memoryStore) Load(_ context.Context, name string) ([]byte, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	record, ok := s.m.records[name]
	if !ok {
		return nil, registry.ErrNotStored
	}
	return slices.Clone(record), nil
}

func (s *memoryStore) Put(_ context.Context, name string, record []byte) error {
	if err := registry.CheckName(name); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.records[name] = slices.Clone(record)
	s.m.changes = append(s.m.changes, change{name, s})
	return nil
}

func (s *memoryStore) Remove(_ context.Context, name string) error {
	if err := registry.CheckName(name); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.records, name)
	s.m.changes = append(s.m.changes, change{name, s})
	return nil
}

func (s *memoryStore) Changes(_ context.Context, since registry.Position) (registry.Changes, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	c := registry.Changes{Next: registry.Position(strconv.Itoa(len(s.m.changes)))}
	from, err := strconv.Atoi(string(since))
	if err != nil {
		c.All = true
		return c, nil
	}
	for _, change := range s.m.changes[from:] {
		if change.by != s && !slices.Contains(c.Names, change.name) {
			c.Names = append(c.Names, change.name)
		}
	}
	return c, nil
}
