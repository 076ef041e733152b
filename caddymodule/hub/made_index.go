package hub

import (
	"hash/maphash"
	"sync"
)

// Made is a service that was made while Caddy runs, as requests find it. It does
// not change: a changed service is another Made in its place.
type Made struct {
	Service *Service

	// RequestParams are the params of its template that may come with a request,
	// as the names of their headers; nil if there are none.
	RequestParams []RequestParam

	// Trouble says why its definition cannot be used; nil if it can. There is no
	// Service then.
	Trouble error

	revision int // that it is of
}

// RequestParam is a param that may come with a request.
type RequestParam struct{ Name, Header string }

// madeIndex finds services by a text that comes with each request: it is read all
// the time, by all requests at once, and changed a hundred times a second. The
// zero value is empty. All methods are safe for concurrent use.
type madeIndex struct {
	shards [64]madeShard
}

type madeShard struct {
	mu sync.RWMutex
	by map[string]*Made
	_  [32]byte // shards in different cache lines do not slow each other down
}

var madeSeed = maphash.MakeSeed()

func (x *madeIndex) shard(key string) *madeShard {
	return &x.shards[maphash.String(madeSeed, key)%uint64(len(x.shards))]
}

func (x *madeIndex) find(key string) *Made {
	s := x.shard(key)
	s.mu.RLock()
	m := s.by[key]
	s.mu.RUnlock()
	return m
}

// set lets m be found by key; nil takes the key away.
func (x *madeIndex) set(key string, m *Made) {
	s := x.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m == nil {
		delete(s.by, key)
		return
	}
	if s.by == nil {
		s.by = make(map[string]*Made)
	}
	s.by[key] = m
}
