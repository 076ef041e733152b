package coordinatortest

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
)

// Memory is a value in the memory of the test. Open returns stores of it. The
// zero Memory has no value. All methods may be called at the same time.
type Memory struct {
	mu       sync.Mutex
	value    []byte
	revision uint64 // of the value; 0: there is none
	last     uint64 // a revision is never given twice
}

// Write puts data in the place of the value. Nil removes it.
func (m *Memory) Write(data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(data)
}

func (m *Memory) set(data []byte) {
	m.last++
	m.value, m.revision = data, m.last
	if data == nil {
		m.revision = 0
	}
}

// Open returns a store of the value.
func (m *Memory) Open() coordinator.Store {
	s := &memoryStore{memory: m}
	s.ctx, s.close = context.WithCancelCause(context.Background())
	return s
}

type memoryStore struct {
	memory *Memory
	ctx    context.Context // ends with Close
	close  context.CancelCauseFunc
}

func (s *memoryStore) usable(ctx context.Context) error {
	return errors.Join(context.Cause(s.ctx), context.Cause(ctx))
}

func (s *memoryStore) Get(ctx context.Context) (value []byte, revision string, err error) {
	if err := s.usable(ctx); err != nil {
		return nil, "", err
	}
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.value, m.name(), nil
}

func (s *memoryStore) Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	if err := s.usable(ctx); err != nil {
		return cluster.Failed, err
	}
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision != m.name() {
		return cluster.Conflict, nil
	}
	m.set(value)
	return cluster.Swapped, nil
}

// name is the revision for stores.
func (m *Memory) name() string {
	if m.revision == 0 {
		return ""
	}
	return strconv.FormatUint(m.revision, 10)
}

func (s *memoryStore) String() string { return "the memory of the test" }

func (s *memoryStore) Close() error {
	s.close(errors.New("closed"))
	return nil
}
