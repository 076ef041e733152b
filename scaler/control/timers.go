package control

import (
	"container/heap"
	"sync"
	"time"
)

// Timers wakes loops at the times at which their decisions may change. All
// loops of a hub share it: a service that sleeps until a time that is far away
// costs an entry, and neither a goroutine nor a timer of its own.
//
// Its methods are safe for concurrent use. The zero value is ready to use.
type Timers struct {
	mu    sync.Mutex
	due   timerHeap
	timer *time.Timer // for the first of due; nil until there is one
}

// timerEntry is when a loop is to decide anew.
type timerEntry struct {
	at   time.Time
	loop *Loop
}

// set makes at the time at which l decides anew. It replaces an earlier one.
func (t *Timers) set(l *Loop, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := int(l.timer) - 1; k >= 0 {
		t.due[k].at = at
		heap.Fix(&t.due, k)
	} else {
		heap.Push(&t.due, timerEntry{at, l})
	}
	t.arm()
}

// drop takes l out, if it is in.
func (t *Timers) drop(l *Loop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := int(l.timer) - 1; k >= 0 {
		heap.Remove(&t.due, k)
		t.arm()
	}
}

// arm sets the timer for the first entry. The lock is held.
func (t *Timers) arm() {
	switch {
	case len(t.due) == 0:
		if t.timer != nil {
			t.timer.Stop()
		}
	case t.timer == nil:
		t.timer = time.AfterFunc(time.Until(t.due[0].at), t.ring)
	default:
		t.timer.Reset(time.Until(t.due[0].at))
	}
}

// ring wakes the loops whose time has come.
func (t *Timers) ring() {
	t.mu.Lock()
	var loops []*Loop
	for now := time.Now(); len(t.due) > 0 && !t.due[0].at.After(now); {
		loops = append(loops, heap.Pop(&t.due).(timerEntry).loop)
	}
	t.arm()
	t.mu.Unlock()
	for _, l := range loops {
		l.Trigger()
	}
}

// timerHeap is a heap of entries, the earliest first. Each loop knows its place
// in it: Loop.timer is the index and one, and 0 for a loop that is not in.
type timerHeap []timerEntry

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].loop.timer, h[j].loop.timer = int32(i+1), int32(j+1)
}

// Push implements heap.Interface.
func (h *timerHeap) Push(x any) {
	e := x.(timerEntry)
	*h = append(*h, e)
	e.loop.timer = int32(len(*h))
}

// Pop implements heap.Interface.
func (h *timerHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = timerEntry{}
	*h = (*h)[:last]
	e.loop.timer = 0
	return e
}
