package control

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Budget bounds the starts in progress over all services. A service claims
// places for the starts that it wants; when a place is free it goes to the
// claim that matters most: a service's first start goes before any service's
// further ones, and among equals the one whose waiter is oldest.
//
// Local starts share the places of this machine. The starts of each remote
// platform have places of their own, as many: a platform that does not answer
// keeps nothing else from starting.
//
// All methods are safe for concurrent use.
type Budget struct {
	mu    sync.Mutex
	limit int
	lanes map[string]*lane // by Traits.Platform; empty is this machine
}

// lane has the places of one platform. It exists while a loop holds or claims
// one.
type lane struct {
	used    int
	claims  map[*Loop]claim
	holders map[*Loop]int // how many places each has
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

// NewBudget returns a budget of so many starts in progress, on each platform.
func NewBudget(limit int) *Budget {
	return &Budget{limit: limit, lanes: make(map[string]*lane)}
}

// SetLimit changes the limit at once; starts in progress go on.
func (b *Budget) SetLimit(limit int) {
	b.mu.Lock()
	b.limit = limit
	granted := make(map[*Loop]bool)
	for _, ln := range b.lanes {
		b.grant(ln, granted)
	}
	b.mu.Unlock()
	wake(granted)
}

// claim sets what l wants of the platform from now on; 0 places withdraw its
// claim. It returns how many places l got at once. Places granted later are
// added to l.granted, and l is woken.
func (b *Budget) claim(l *Loop, platform string, places int, first bool, since time.Time) int {
	b.mu.Lock()
	ln := b.lanes[platform]
	if ln == nil {
		if places <= 0 {
			b.mu.Unlock()
			return 0
		}
		ln = &lane{claims: make(map[*Loop]claim), holders: make(map[*Loop]int)}
		b.lanes[platform] = ln
	}
	if places <= 0 {
		delete(ln.claims, l)
	} else {
		ln.claims[l] = claim{places: places, first: first, since: since}
	}
	before := l.granted.Load()
	granted := make(map[*Loop]bool)
	b.grant(ln, granted)
	got := int(l.granted.Load() - before)
	b.tidy(platform, ln)
	b.mu.Unlock()
	delete(granted, l)
	wake(granted)
	return got
}

// giveBack returns places of l.
func (b *Budget) giveBack(l *Loop, platform string, n int) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	ln := b.lanes[platform]
	ln.used -= n
	if ln.holders[l] -= n; ln.holders[l] == 0 {
		delete(ln.holders, l)
	}
	granted := make(map[*Loop]bool)
	b.grant(ln, granted)
	b.tidy(platform, ln)
	b.mu.Unlock()
	wake(granted)
}

// tidy forgets a platform of which no place is held or claimed. The lock is
// held.
func (b *Budget) tidy(platform string, ln *lane) {
	if ln.used == 0 && len(ln.claims) == 0 {
		delete(b.lanes, platform)
	}
}

// grant gives out the free places and takes note of who got one. The lock is
// held. It looks at every claim for every place, which is little against a
// start.
func (b *Budget) grant(ln *lane, granted map[*Loop]bool) {
	for ln.used < b.limit && len(ln.claims) > 0 {
		var best *Loop
		for l, c := range ln.claims {
			if best == nil || c.before(ln.claims[best]) {
				best = l
			}
		}
		c := ln.claims[best]
		if c.places--; c.places == 0 {
			delete(ln.claims, best)
		} else {
			c.first = false
			ln.claims[best] = c
		}
		ln.used++
		ln.holders[best]++
		best.granted.Add(1)
		granted[best] = true
	}
}

// holdersNamed is how many services are named of those that hold places.
const holdersNamed = 8

// words says what a start of this platform waits for.
func (b *Budget) words(platform string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	if ln := b.lanes[platform]; ln != nil {
		for l := range ln.holders {
			names = append(names, l.env.Service)
		}
	}
	slices.Sort(names)
	more := ""
	if n := len(names) - holdersNamed; n > 0 {
		names, more = names[:holdersNamed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("waits for one of %d places to start, held by %s%s", b.limit, strings.Join(names, ", "), more)
}

func wake(loops map[*Loop]bool) {
	for l := range loops {
		l.Trigger()
	}
}
