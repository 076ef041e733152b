package scaler

import (
	"sync"
	"time"
)

// Budget bounds the starts in progress over all services. A service claims
// places for the starts that it wants; when a place is free it goes to the
// claim that matters most: a service's first start goes before any service's
// further ones, and among equals the one whose waiter is oldest.
//
// All methods are safe for concurrent use.
type Budget struct {
	mu     sync.Mutex
	limit  int
	used   int
	claims map[*Loop]claim
}

type claim struct {
	places int
	first  bool
	since  time.Time
}

func (c claim) before(d claim) bool {
	if c.first != d.first {
		return c.first
	}
	return c.since.Before(d.since)
}

// NewBudget returns a budget of so many starts in progress.
func NewBudget(limit int) *Budget {
	return &Budget{limit: limit, claims: make(map[*Loop]claim)}
}

// SetLimit changes the limit at once; starts in progress go on.
func (b *Budget) SetLimit(limit int) {
	b.mu.Lock()
	b.limit = limit
	granted := b.grant()
	b.mu.Unlock()
	wake(granted)
}

// Used returns the number of starts in progress.
func (b *Budget) Used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// claim sets what l wants from now on; 0 places withdraw its claim. It
// returns how many places l got at once. Places granted later are added to
// l.granted, and l is woken.
func (b *Budget) claim(l *Loop, places int, first bool, since time.Time) int {
	b.mu.Lock()
	if places <= 0 {
		delete(b.claims, l)
	} else {
		b.claims[l] = claim{places: places, first: first, since: since}
	}
	before := l.granted.Load()
	granted := b.grant()
	got := int(l.granted.Load() - before)
	b.mu.Unlock()
	delete(granted, l)
	wake(granted)
	return got
}

// giveBack returns places.
func (b *Budget) giveBack(n int) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.used -= n
	granted := b.grant()
	b.mu.Unlock()
	wake(granted)
}

// grant gives out the free places and returns who got one. The lock is held.
// It looks at every claim for every place, which is little against a start.
func (b *Budget) grant() map[*Loop]bool {
	var granted map[*Loop]bool
	for b.used < b.limit && len(b.claims) > 0 {
		var best *Loop
		for l, c := range b.claims {
			if best == nil || c.before(b.claims[best]) {
				best = l
			}
		}
		c := b.claims[best]
		if c.places--; c.places == 0 {
			delete(b.claims, best)
		} else {
			c.first = false
			b.claims[best] = c
		}
		b.used++
		best.granted.Add(1)
		if granted == nil {
			granted = make(map[*Loop]bool)
		}
		granted[best] = true
	}
	return granted
}

func wake(loops map[*Loop]bool) {
	for l := range loops {
		l.Poke()
	}
}
