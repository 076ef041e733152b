package hub

import (
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler/control"
)

// ActivityKept is how many of the latest decisions, cold starts and failed
// starts, over all services, can be read back whatever else happens.
const ActivityKept = 100

// activityRecent is how many of the latest entries of any kind are kept at
// least. At most twice as many are.
const activityRecent = 512

// Entry is one thing that happened to one service.
type Entry struct {
	Number  uint64 // that of the entry before, and one
	Time    time.Time
	Service string
	Event   control.Event
}

// Notable says whether e is a decision, a cold start or a failed start.
func (e Entry) Notable() bool {
	switch e.Event.(type) {
	case control.Decision, control.ColdStart, control.StartFailure:
		return true
	}
	return false
}

// Activity is what happened lately, over all services. A reader keeps the
// number of the last entry that it has seen and goes on from there: adding an
// entry never waits for a reader, and encodes nothing.
type Activity struct {
	mu      sync.Mutex
	number  uint64 // of the newest
	entries []Entry
	changed signal
}

// add numbers e and keeps it.
func (a *Activity) add(e Entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	e.Number = a.number
	if len(a.entries) == 2*activityRecent {
		a.forget()
	}
	a.entries = append(a.entries, e)
	a.changed.tell()
}

// forget drops the older half of the entries, but for those that ActivityKept
// promises. The lock is held.
func (a *Activity) forget() {
	later := 0 // notable entries from here on
	for _, e := range a.entries {
		if e.Notable() {
			later++
		}
	}
	kept := a.entries[:0]
	for k, e := range a.entries {
		if k >= activityRecent || e.Notable() && later <= ActivityKept {
			kept = append(kept, e)
		}
		if e.Notable() {
			later--
		}
	}
	clear(a.entries[len(kept):])
	a.entries = kept
}

// Last returns the number of the newest entry.
func (a *Activity) Last() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.number
}

// After returns the kept entries beyond a number, oldest first. more is closed
// when there is another one; it is nil if there will be none. If the first
// entry is not the next one, the reader was too slow and has missed some.
func (a *Activity) After(number uint64) (entries []Entry, more <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from := len(a.entries)
	for from > 0 && a.entries[from-1].Number > number {
		from--
	}
	return append(entries, a.entries[from:]...), a.changed.Next()
}

// observer is a service that its control loop tells what happens.
type observer Service

// Observe implements control.Observer.
func (o *observer) Observe(event control.Event) {
	s, e := (*Service)(o), Entry{Time: time.Now(), Service: o.Name, Event: event}
	if d, ok := event.(control.Decision); ok {
		e.Time = d.Time
	}
	if s.shared != nil {
		s.shared.tellEvent(e)
	}
	if outlook, ok := event.(control.Outlook); ok {
		s.foresaw(e.Time, outlook)
		return // it is drawn, but nothing has happened
	}
	s.logEvent(event)
	s.metrics.count(e)
	s.ColdTrace.follow(event)
	s.remember(e)
	s.emit(event)
	s.Hub.Activity.add(e)
	switch event.(type) {
	case control.Decision:
		s.Hub.learned(s)
	case control.StateChange, control.StartFailure:
		s.Changes.tell() // a visitor is told of each attempt
	}
}
