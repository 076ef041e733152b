package cluster

import (
	"slices"
	"sort"
	"strings"
)

// Peer is one Caddy, as the others know it.
type Peer struct {
	// ID is the name that an operator gives to it. It may be the same after a
	// restart.
	ID string

	// Boot is different for each start of each Caddy. It is what the protocol
	// goes by.
	Boot string

	// Address is where the others connect to.
	Address string
}

// View is the one thing that all Caddys of a cluster agree on. It lies in the
// coordinator and is changed by compare-and-swap only. Peers are sorted by
// Boot. A View is never changed once it is made.
type View struct {
	// Number grows with each change. 0 is a coordinator that has no view.
	Number uint64

	// Leader is the boot of the member that divides the slots. It is empty
	// when the last member has left.
	Leader string

	// Members are the Caddys that may hold slots.
	Members []Peer

	// Lost are former members that may still have requests inside. A new
	// leader waits for them as it does for the members.
	Lost []Peer
}

// Has reports whether the Caddy with this boot is a member.
func (v View) Has(boot string) bool {
	_, ok := find(v.Members, boot)
	return ok
}

// Peer returns the member or lost member with this boot.
func (v View) Peer(boot string) (Peer, bool) {
	if k, ok := find(v.Members, boot); ok {
		return v.Members[k], true
	}
	if k, ok := find(v.Lost, boot); ok {
		return v.Lost[k], true
	}
	return Peer{}, false
}

// Equal reports whether two views are the same in every part.
func (v View) Equal(w View) bool {
	return v.Number == w.Number && v.Leader == w.Leader &&
		slices.Equal(v.Members, w.Members) && slices.Equal(v.Lost, w.Lost)
}

// Valid reports whether a Caddy can have written the view. The zero View, which
// stands for a coordinator that has none, is valid, too.
func (v View) Valid() bool {
	for _, peers := range [][]Peer{v.Members, v.Lost} {
		for k := 1; k < len(peers); k++ {
			if peers[k-1].Boot >= peers[k].Boot {
				return false
			}
		}
	}
	return v.Number < 1<<62 && (v.Has(v.Leader) || v.Leader == "" && len(v.Members) == 0)
}

func find(peers []Peer, boot string) (int, bool) {
	return sort.Find(len(peers), func(k int) int { return strings.Compare(boot, peers[k].Boot) })
}

// with returns peers and p, sorted. The argument is not changed.
func with(peers []Peer, p Peer) []Peer {
	k, ok := find(peers, p.Boot)
	if ok {
		return peers
	}
	return insert(slices.Clone(peers), k, p)
}

// insert returns all with one at place k. slices.Insert does the same for several values
// and all kinds of overlap, which makes the binary larger by 5 kB for each type.
func insert[T any](all []T, k int, one T) []T {
	all = append(all, one)
	copy(all[k+1:], all[k:])
	all[k] = one
	return all
}

// rendezvous returns the one of peers that an instance without waiters
// belongs to: a peer that comes or goes moves only its own part.
func rendezvous(instance string, peers []Peer) (owner string) {
	var best uint64
	for _, p := range peers {
		// Two peers may have the same ID while one replaces the other.
		if h := hash(p.ID, instance); owner == "" || h > best {
			owner, best = p.Boot, h
		}
	}
	return owner
}

// hash is FNV-1a with the final mix of SplitMix64: without it the highest bits,
// which decide, hardly depend on the last letters.
func hash(words ...string) uint64 {
	h := uint64(14695981039346656037)
	for _, w := range words {
		for k := range len(w) {
			h = (h ^ uint64(w[k])) * 1099511628211
		}
		h *= 1099511628211 // ends the word
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
