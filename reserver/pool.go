package reserver

import "math/rand/v2"

// pool holds the instances that have a free slot: as a binary heap whose root
// is the one to take next, or for Random in no order. Every instance knows its
// place, so any one can be moved or taken out in O(log n).
type pool struct {
	balance Balance
	items   []*Instance
}

// take returns the instance that gets the next request, or nil. It stays in
// the pool until used is called.
func (p *pool) take() *Instance {
	n := len(p.items)
	if n == 0 {
		return nil
	}
	if p.balance != Random || n == 1 {
		return p.items[0]
	}
	k := rand.IntN(n)
	l := rand.IntN(n - 1)
	if l >= k {
		l++
	}
	if a, b := p.items[k], p.items[l]; b.lessLoaded(a) {
		return b
	} else {
		return a
	}
}

// hasMoreThan reports whether more than n slots are free. It looks at no more
// than n+1 instances, because each has at least one.
func (p *pool) hasMoreThan(n int) bool {
	for _, i := range p.items {
		if i.slots == Unlimited {
			return true
		}
		if n -= i.slots - i.inUse; n < 0 {
			return true
		}
	}
	return false
}

func (p *pool) less(a, b *Instance) bool {
	if p.balance == Oldest {
		return a.seq < b.seq
	}
	return a.lessLoaded(b)
}

// used puts i in its place after a slot of it was taken.
func (p *pool) used(i *Instance) {
	switch {
	case i.place < 0:
	case !i.hasRoom():
		p.remove(i)
	case p.balance == LeastLoaded:
		p.down(i.place)
	}
}

// freed puts i, which takes requests, in its place after a slot of it was
// given back or its number of slots was changed.
func (p *pool) freed(i *Instance) {
	switch {
	case !i.hasRoom():
		p.remove(i)
	case i.place < 0:
		i.place = len(p.items)
		p.items = append(p.items, i)
		p.up(i.place)
	case p.balance == LeastLoaded:
		p.up(i.place)
	}
}

// moved puts i in its place after its load changed in either direction.
func (p *pool) moved(i *Instance) {
	p.remove(i)
	p.freed(i)
}

func (p *pool) remove(i *Instance) {
	k := i.place
	if k < 0 {
		return
	}
	last := len(p.items) - 1
	p.swap(k, last)
	p.items[last] = nil
	p.items = p.items[:last]
	i.place = -1
	if k < last {
		p.down(k)
		p.up(k)
	}
}

func (p *pool) rebalance(b Balance) {
	if p.balance == b {
		return
	}
	p.balance = b
	for k := len(p.items)/2 - 1; k >= 0; k-- {
		p.down(k)
	}
}

func (p *pool) up(k int) {
	if p.balance == Random {
		return
	}
	for k > 0 {
		parent := (k - 1) / 2
		if !p.less(p.items[k], p.items[parent]) {
			return
		}
		p.swap(k, parent)
		k = parent
	}
}

func (p *pool) down(k int) {
	if p.balance == Random {
		return
	}
	for {
		child := 2*k + 1
		if child >= len(p.items) {
			return
		}
		if r := child + 1; r < len(p.items) && p.less(p.items[r], p.items[child]) {
			child = r
		}
		if !p.less(p.items[child], p.items[k]) {
			return
		}
		p.swap(k, child)
		k = child
	}
}

func (p *pool) swap(a, b int) {
	p.items[a], p.items[b] = p.items[b], p.items[a]
	p.items[a].place, p.items[b].place = a, b
}
