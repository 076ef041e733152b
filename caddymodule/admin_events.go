package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// adminEnds tells, for each admin server that has an event stream open, when
// it is replaced or Caddy exits. A stream that did not end then would delay
// both.
var adminEnds = struct {
	sync.Mutex
	of map[*http.Server]chan struct{}
}{of: make(map[*http.Server]chan struct{})}

// adminEnd returns a channel that is closed when the admin server of r ends.
func adminEnd(r *http.Request) <-chan struct{} {
	srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok {
		return nil
	}
	adminEnds.Lock()
	defer adminEnds.Unlock()
	if ch, ok := adminEnds.of[srv]; ok {
		return ch
	}
	ch := make(chan struct{})
	adminEnds.of[srv] = ch
	srv.RegisterOnShutdown(func() {
		adminEnds.Lock()
		defer adminEnds.Unlock()
		delete(adminEnds.of, srv)
		close(ch)
	})
	return ch
}

// eventPatience is how long a client may take to read what was sent.
const eventPatience = 10 * time.Second

// byePatience is the same when the server is about to end.
const byePatience = time.Second

// eventWriter writes to a client that may not read. It would hang, and with
// it the end of the server, for as long as the connection lives.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	mu    sync.Mutex
	until time.Time // when the last write is over, once the server ends
}

func newEventWriter(w http.ResponseWriter) *eventWriter {
	return &eventWriter{w: w, rc: http.NewResponseController(w)}
}

// endWith cuts writes short as soon as end is closed, even one that hangs
// already, until done is closed.
func (e *eventWriter) endWith(end, done <-chan struct{}) {
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
	below := http.NewResponseController(innermost(e.w))
	again := time.NewTicker(byePatience / 10)
	defer again.Stop()
	for {
		_ = below.SetWriteDeadline(until)
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

func (e *eventWriter) write(text string) error {
	e.mu.Lock()
	until := e.until
	e.mu.Unlock()
	if until.IsZero() {
		until = time.Now().Add(eventPatience)
	}
	_ = e.rc.SetWriteDeadline(until)
	if _, err := io.WriteString(e.w, text); err != nil {
		return err
	}
	return e.rc.Flush()
}

func (e *eventWriter) event(v event) error {
	return e.write(fmt.Sprintf("event: %s\ndata: %s\n\n", v.name, v.data))
}

// keepAlive is how often an idle event stream says that it is there.
const keepAlive = 15 * time.Second

// streamEvents answers with Server-Sent Events: first one event `service` for
// every service as it is now, then every change, at last `bye`.
func streamEvents(w http.ResponseWriter, r *http.Request, h *hub, _ *service, _ string) error {
	if r.Method == http.MethodHead {
		return nil
	}
	var events <-chan event
	var present []event
	if h != nil {
		ch, unsubscribe := h.events.subscribe()
		defer unsubscribe()
		events = ch
		for _, s := range h.all() {
			if b, err := json.Marshal(s.summary()); err == nil {
				present = append(present, event{"service", b})
			}
		}
	}
	return sendEvents(w, r, adminEnd(r), events, present...)
}

// sendEvents answers with Server-Sent Events: those that come first, then all
// that come, until there are no more or the server ends, which end tells, and
// at last `bye`.
func sendEvents(w http.ResponseWriter, r *http.Request, end <-chan struct{}, events <-chan event, first ...event) error {
	out := newEventWriter(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")

	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { out.endWith(end, done) })
	defer watching.Wait()
	defer close(done)

	for _, e := range first {
		if out.event(e) != nil {
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
				_ = out.event(bye)
				return nil
			}
			err = out.event(e)
		case <-alive.C:
			err = out.write(": alive\n\n")
		case <-end:
			_ = out.event(bye)
			return nil
		case <-r.Context().Done():
			return nil
		}
		if err != nil {
			return nil
		}
	}
}

// bye is the last event of a stream.
var bye = event{"bye", []byte("{}")}
