package answer

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Event is one event of a stream: its name and its data, encoded.
type Event struct {
	Name string
	Data []byte
}

// Bye is the last event of a stream.
var Bye = Event{Name: "bye", Data: []byte("{}")}

// EventPatience is how long a client may take to read what was sent.
const EventPatience = 10 * time.Second

// byePatience is the same when the server is about to end.
const byePatience = time.Second

// EventWriter writes to a client that may not read. It would hang, and with
// it the end of the server, for as long as the connection lives.
type EventWriter struct {
	w     http.ResponseWriter
	Rc    *http.ResponseController
	below *http.ResponseController // of the connection's own writer

	mu    sync.Mutex
	until time.Time // when the last write is over, once the server ends
}

// NewEventWriter returns a writer of events to the client of w.
func NewEventWriter(w http.ResponseWriter) *EventWriter {
	return &EventWriter{w: w, Rc: http.NewResponseController(w), below: http.NewResponseController(innermost(w))}
}

// EndWith cuts writes short as soon as end is closed, even one that hangs
// already, until done is closed.
func (e *EventWriter) EndWith(end, done <-chan struct{}) {
	select {
	case <-end:
	case <-done:
		return
	}
	until := time.Now().Add(byePatience)
	e.mu.Lock()
	e.until = until
	e.mu.Unlock()
	// What Caddy puts around a response is for one goroutine alone. The
	// connection's own takes a deadline from any, but a write that is about to
	// begin may set a later one.
	again := time.NewTicker(byePatience / 10)
	defer again.Stop()
	for {
		_ = e.below.SetWriteDeadline(until)
		select {
		case <-again.C:
		case <-done:
			return
		}
	}
}

// innermost returns the response that all others are wrapped around.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}

func (e *EventWriter) write(text string) error {
	e.mu.Lock()
	until := e.until
	e.mu.Unlock()
	if until.IsZero() {
		until = time.Now().Add(EventPatience)
	}
	_ = e.Rc.SetWriteDeadline(until)
	if _, err := io.WriteString(e.w, text); err != nil {
		return err
	}
	return e.Rc.Flush()
}

// Event writes one event.
func (e *EventWriter) Event(v Event) error {
	return e.write(fmt.Sprintf("event: %s\ndata: %s\n\n", v.Name, ForeignJSON(v.Data)))
}

// keepAlive is how often an idle event stream says that it is there.
const keepAlive = 15 * time.Second

// Stream answers with Server-Sent Events: those that come first, then all
// that come, until there are no more or the server ends, which end tells, and
// at last `bye`.
func Stream(w http.ResponseWriter, r *http.Request, end <-chan struct{}, events <-chan Event, first ...Event) error {
	out := NewEventWriter(w)
	w.Header().Set("Content-Type", TypeEvents)
	w.Header().Set("Cache-Control", "no-store")

	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { out.EndWith(end, done) })
	defer watching.Wait()
	defer close(done)

	for _, e := range first {
		if out.Event(e) != nil {
			return nil
		}
	}
	// The headers leave even if there is nothing to say yet.
	if out.write("") != nil {
		return nil
	}
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		var err error
		select {
		case e, ok := <-events:
			if !ok {
				// The hub ends, or we were too slow: come again.
				_ = out.Event(Bye)
				return nil
			}
			err = out.Event(e)
		case <-alive.C:
			err = out.write(": alive\n\n")
		case <-end:
			_ = out.Event(Bye)
			return nil
		case <-r.Context().Done():
			return nil
		}
		if err != nil {
			return nil
		}
	}
}
