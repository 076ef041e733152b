package marathonsim

import (
	"container/heap"
	"sync/atomic"
	"time"
)

// A clock is the simulator's own time. It runs at a multiple of the wall
// clock and can be put forward, so that what takes Marathon five minutes need
// not take a test five minutes. Processes live in wall time, of course.
type clock struct {
	start  time.Time
	speed  float64
	offset atomic.Int64
}

func newClock(speed float64) *clock {
	if speed <= 0 {
		speed = 1
	}
	return &clock{start: time.Now(), speed: speed}
}

func (c *clock) now() time.Time {
	wall := time.Since(c.start)
	return c.start.Add(time.Duration(float64(wall)*c.speed) + time.Duration(c.offset.Load()))
}

// wall is how long d of the simulator's time takes on the wall clock.
func (c *clock) wall(d time.Duration) time.Duration {
	return time.Duration(float64(d) / c.speed)
}

// A timer is one thing that the engine does later. All timers of the engine
// stand in one heap and run in its goroutine: nothing needs a lock, and
// putting the clock forward makes them due in their order.
type timer struct {
	at      time.Time
	seq     uint64 // equal moments run in the order in which they were asked for
	run     func()
	index   int // in the heap; -1 when it is not there
	stopped bool
}

// stop takes the timer back; it may have run already, and may be nil.
func (t *timer) stop() {
	if t != nil {
		t.stopped = true
	}
}

type timerHeap []*timer

func (h timerHeap) Len() int { return len(h) }

func (h timerHeap) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].seq < h[j].seq
	}
	return h[i].at.Before(h[j].at)
}

func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}

// after has run called in the engine's goroutine when d has passed.
func (e *engine) after(d time.Duration, run func()) *timer {
	e.timerSeq++
	t := &timer{at: e.now().Add(d), seq: e.timerSeq, run: run}
	heap.Push(&e.timers, t)
	return t
}

// runDue runs what is due and returns how long, on the wall clock, until the
// next timer.
func (e *engine) runDue() time.Duration {
	for len(e.timers) > 0 {
		next := e.timers[0]
		if next.stopped {
			heap.Pop(&e.timers)
			continue
		}
		wait := next.at.Sub(e.now())
		if wait > 0 {
			return max(e.clock.wall(wait), 50*time.Microsecond)
		}
		heap.Pop(&e.timers)
		next.run()
	}
	return time.Hour
}
