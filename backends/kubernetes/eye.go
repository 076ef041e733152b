package kubernetes

import (
	"sync"
	"time"
)

// An eye calls look, in a goroutine of its own, after each poke: at least once
// after the latest one, and never twice at a time.
type eye struct {
	look func()

	mu             sync.Mutex
	active, wanted bool
	closed         bool
	again          *time.Timer
	life           sync.WaitGroup
}

// poke never blocks.
func (e *eye) poke() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.wanted = true
	if !e.active {
		e.active = true
		e.life.Go(e.work)
	}
}

// pokeIn pokes after a pause, in place of what was to come later.
func (e *eye) pokeIn(pause time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	if e.again != nil {
		e.again.Stop()
	}
	e.again = time.AfterFunc(pause, e.poke)
}

func (e *eye) work() {
	for {
		e.mu.Lock()
		if !e.wanted || e.closed {
			e.active = false
			e.mu.Unlock()
			return
		}
		e.wanted = false
		e.mu.Unlock()
		e.look()
	}
}

// close returns when look is not called any more.
func (e *eye) close() {
	e.mu.Lock()
	e.closed = true
	if e.again != nil {
		e.again.Stop()
	}
	e.mu.Unlock()
	e.life.Wait()
}
