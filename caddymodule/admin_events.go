package caddymodule

import (
	"encoding/json"
	"fmt"
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

// keepAlive is how often an idle event stream says that it is there.
const keepAlive = 15 * time.Second

// streamEvents answers with Server-Sent Events: first one event `service` for
// every service as it is now, then every change, at last `bye`.
func streamEvents(w http.ResponseWriter, r *http.Request, h *hub, _ *service, _ string) error {
	if r.Method == http.MethodHead {
		return nil
	}
	end := adminEnd(r)
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")

	var events <-chan event
	if h != nil {
		ch, unsubscribe := h.events.subscribe()
		defer unsubscribe()
		events = ch
		for _, s := range h.all() {
			b, err := json.Marshal(s.summary())
			if err != nil {
				continue
			}
			writeEvent(w, event{"service", b})
		}
	}
	if rc.Flush() != nil {
		return nil
	}
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				// The hub ends, or we were too slow: come again.
				bye(w, rc)
				return nil
			}
			writeEvent(w, e)
		case <-alive.C:
			_, _ = fmt.Fprint(w, ": alive\n\n")
		case <-end:
			bye(w, rc)
			return nil
		case <-r.Context().Done():
			return nil
		}
		if rc.Flush() != nil {
			return nil
		}
	}
}

func writeEvent(w http.ResponseWriter, e event) {
	_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.name, e.data)
}

func bye(w http.ResponseWriter, rc *http.ResponseController) {
	writeEvent(w, event{"bye", []byte("{}")})
	_ = rc.Flush()
}
