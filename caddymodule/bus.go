package caddymodule

import (
	"encoding/json"
	"sync"
)

// event is one event of the stream: its name and its data, encoded.
type event struct {
	name string
	data []byte
}

// busBacklog is how many events a subscriber may be behind. One that is
// further behind is cut off, and learns the present state when it comes back.
const busBacklog = 256

// bus hands events to those who listen. Publishing never blocks, and encodes
// nothing while nobody listens.
type bus struct {
	mu          sync.Mutex
	subscribers map[chan event]struct{}
	closed      bool
}

func newBus() *bus { return &bus{subscribers: make(map[chan event]struct{})} }

func (b *bus) publish(name string, data any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subscribers) == 0 {
		return
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		return
	}
	for ch := range b.subscribers {
		select {
		case ch <- event{name, encoded}:
		default:
			delete(b.subscribers, ch)
			close(ch)
		}
	}
}

// subscribe returns a channel that gets all events from now on, until it is
// closed, and a function that ends the subscription.
func (b *bus) subscribe() (<-chan event, func()) {
	ch := make(chan event, busBacklog)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(ch)
		return ch, func() {}
	}
	b.subscribers[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.subscribers[ch]; ok {
			delete(b.subscribers, ch)
			close(ch)
		}
	}
}

// close ends all subscriptions.
func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for ch := range b.subscribers {
		delete(b.subscribers, ch)
		close(ch)
	}
}
