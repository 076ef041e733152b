package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
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

// streamEvents answers with Server-Sent Events: first one event `service` for
// every service as it is now, then every change, at last `bye`. A client that
// is too slow to be told every change gets its `bye` at once: when it comes
// back it learns the present.
func streamEvents(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	if r.Method == http.MethodHead {
		return nil
	}
	if h == nil {
		return answer.Stream(w, r, adminEnd(r), nil)
	}
	// What happens while the present is put together comes again.
	told := h.Activity.Last()
	var present []answer.Event
	for _, s := range h.All() {
		present = append(present, encode("service", s.Summary())...)
	}
	return follow(w, r, present, func() (events []answer.Event, more <-chan struct{}) {
		entries, more := h.Activity.After(told)
		for _, e := range entries {
			if told++; e.Number != told {
				return nil, nil
			}
			events = append(events, eventsOf(e)...)
		}
		return events, more
	})
}

// eventsOf is the event of the stream that tells of e, if there is one.
func eventsOf(e hub.Entry) []answer.Event {
	data := map[string]any{"service": e.Service, "time": e.Time}
	switch happened := e.Event.(type) {
	case control.Decision:
		data["from"], data["to"], data["reason"] = happened.From, happened.To, happened.Reason
		return encode("target", data)
	case control.StateChange:
		data["from"], data["to"] = happened.From, happened.To
		return encode("state", data)
	case control.InstanceStatus:
		data["id"], data["address"], data["state"], data["revision"] = happened.ID, happened.Address, happened.State, happened.Revision
		return encode("instance", data)
	}
	return nil
}

// encode returns one event, or none if data cannot be encoded.
func encode(name string, data any) []answer.Event {
	b, err := json.Marshal(data)
	if err != nil {
		return nil
	}
	return []answer.Event{{Name: name, Data: b}}
}

// follow answers with Server-Sent Events: first the present, then what next
// returns, which is called again whenever its channel is closed, until it
// returns none, the server ends or the client goes away; at last `bye`.
func follow(w http.ResponseWriter, r *http.Request, present []answer.Event, next func() ([]answer.Event, <-chan struct{})) error {
	ctx, cancel := context.WithCancel(r.Context())
	events := make(chan answer.Event)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(events)
		for {
			all, more := next()
			for _, e := range all {
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			}
			if more == nil {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	})
	defer reading.Wait()
	defer cancel()
	return answer.Stream(w, r, adminEnd(r), events, present...)
}
