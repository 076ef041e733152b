package cluster

import (
	"cmp"
	"maps"
	"slices"
)

// Board is what all Caddys of a cluster know alike, beside the view: small notes
// under keys, such as which services an operator has suspended. Each Caddy has a
// whole copy. Of two notes under one key the one with the higher stamp stays, on
// all of them, in whatever order the notes arrive, and however often. A board
// decides nothing about slots. Its methods are not safe for concurrent use.
type Board struct {
	boot  string
	count uint64 // the highest of all stamps
	notes map[string]Note
}

// Note is what a board has under a key.
type Note struct {
	Key, Value string

	// Gone is true if the note was taken away. That is kept, too: an older note
	// would come back otherwise.
	Gone bool

	Stamp Stamp
}

// Stamp orders the notes under one key. Count is higher than that of all notes
// which the Caddy knew that made the note (a clock as in L. Lamport, "Time,
// clocks, and the ordering of events in a distributed system", 1978), and Boot
// is that of this Caddy.
type Stamp struct {
	Count uint64
	Boot  string
}

// compare orders stamps.
func (s Stamp) compare(t Stamp) int {
	return cmp.Or(cmp.Compare(s.Count, t.Count), cmp.Compare(s.Boot, t.Boot))
}

// NewBoard returns the empty board of a Caddy.
func NewBoard(boot string) *Board { return &Board{boot: boot, notes: make(map[string]Note)} }

// Put puts a note under a key, in place of what is there, and returns it.
func (b *Board) Put(key, value string) Note { return b.set(Note{Key: key, Value: value}) }

// Take takes the note under a key away, and returns what is left of it.
func (b *Board) Take(key string) Note { return b.set(Note{Key: key, Gone: true}) }

func (b *Board) set(n Note) Note {
	b.count++
	n.Stamp = Stamp{Count: b.count, Boot: b.boot}
	b.notes[n.Key] = n
	return n
}

// Merge takes notes of another Caddy, or of an earlier time. It returns those
// that were news, in their order.
func (b *Board) Merge(notes []Note) (news []Note) {
	for _, n := range notes {
		b.count = max(b.count, n.Stamp.Count)
		if old, ok := b.notes[n.Key]; ok && n.Stamp.compare(old.Stamp) <= 0 {
			continue
		}
		b.notes[n.Key] = n
		news = append(news, n)
	}
	return news
}

// Get returns the note under a key. It is Gone if there is none.
func (b *Board) Get(key string) Note {
	if n, ok := b.notes[key]; ok {
		return n
	}
	return Note{Key: key, Gone: true}
}

// All returns all notes, those that are gone too, by key.
func (b *Board) All() []Note {
	var all []Note
	for _, key := range slices.Sorted(maps.Keys(b.notes)) {
		all = append(all, b.notes[key])
	}
	return all
}
