package liveview

import (
	"encoding/json"
	"sync"

	"github.com/caddy-usher/usher/caddymodule/answer"
)

// viewerBacklog is how many events a viewer may be behind. One that is further
// behind is cut off, and learns the present state when it comes back.
const viewerBacklog = 256

// audience hands events to all viewers. That never blocks, each event is
// encoded once, and none is while nothing views.
type audience struct {
	mu      sync.Mutex
	viewers map[chan answer.Event]struct{}
	closed  bool
}

func newAudience() *audience { return &audience{viewers: make(map[chan answer.Event]struct{})} }

// tell hands out an event.
func (a *audience) tell(name string, data any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.viewers) == 0 {
		return
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		return
	}
	for ch := range a.viewers {
		select {
		case ch <- answer.Event{Name: name, Data: encoded}:
		default:
			a.remove(ch)
		}
	}
}

// join returns a channel that gets all events from now on, until it is closed,
// and a function that ends that.
func (a *audience) join() (<-chan answer.Event, func()) {
	ch := make(chan answer.Event, viewerBacklog)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		close(ch)
		return ch, func() {}
	}
	a.viewers[ch] = struct{}{}
	return ch, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.remove(ch)
	}
}

// remove ends one that views. The lock is held.
func (a *audience) remove(ch chan answer.Event) {
	if _, ok := a.viewers[ch]; ok {
		delete(a.viewers, ch)
		close(ch)
	}
}

// close ends all.
func (a *audience) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for ch := range a.viewers {
		a.remove(ch)
	}
}
