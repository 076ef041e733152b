package reserver

// element is what a heap has: it knows its place there.
type element[T any] interface {
	comes(before T) bool
	put(place int)
	at() int
}

// heap is a binary heap of elements that know their place in it, so that any
// one can be taken out in O(log n).
type heap[T element[T]] struct{ items []T }

func (h *heap[T]) push(x T) {
	h.items = append(h.items, x)
	x.put(len(h.items) - 1)
	h.up(len(h.items) - 1)
}

// remove takes out the element at place k.
func (h *heap[T]) remove(k int) {
	var none T
	last := len(h.items) - 1
	h.swap(k, last)
	h.items[last].put(-1)
	h.items[last] = none
	h.items = h.items[:last]
	if k < last {
		h.down(k)
		h.up(k)
	}
}

// fix puts the element at place k where it belongs after it has changed.
func (h *heap[T]) fix(k int) {
	h.down(k)
	h.up(k)
}

func (h *heap[T]) up(k int) {
	for k > 0 {
		parent := (k - 1) / 2
		if !h.items[k].comes(h.items[parent]) {
			return
		}
		h.swap(k, parent)
		k = parent
	}
}

func (h *heap[T]) down(k int) {
	for {
		child := 2*k + 1
		if child >= len(h.items) {
			return
		}
		if r := child + 1; r < len(h.items) && h.items[r].comes(h.items[child]) {
			child = r
		}
		if !h.items[child].comes(h.items[k]) {
			return
		}
		h.swap(k, child)
		k = child
	}
}

func (h *heap[T]) swap(a, b int) {
	h.items[a], h.items[b] = h.items[b], h.items[a]
	h.items[a].put(a)
	h.items[b].put(b)
}
