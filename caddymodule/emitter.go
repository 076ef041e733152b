package caddymodule

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
)

// The events that are emitted on Caddy's events app. Their data have
// `service`, and what is said here.
const (
	eventWaking  = "usher.waking"  // none is ready, one is wanted: `from`, the state before
	eventReady   = "usher.ready"   // the service is awake: `from`, and `cold_start_ms` after a cold start
	eventAsleep  = "usher.asleep"  // none is ready and none is wanted: `from`
	eventFailing = "usher.failing" // starts fail: `from`, `reason` and `error` of the last failure
	eventScaled  = "usher.scaled"  // the target has changed: `from`, `to`, and `reason` in words
)

// emitterBacklog is how many events may wait for the handlers of those before.
const emitterBacklog = 256

// emitter emits what happens to services on the events app of the
// configuration in force. Handlers run in a goroutine of its own, one after
// the other, which exists only while there is something to emit: neither a
// request nor a decision waits for them. What happens faster than they can
// follow is left out, and that is said.
type emitter struct {
	mu      sync.Mutex
	app     *caddyevents.App
	ctx     caddy.Context // of the configuration
	log     *zap.Logger
	pending []pendingEvent
	running bool
	lost    int // since it was said
}

type pendingEvent struct {
	name string
	data map[string]any
}

// use makes the events app of g the one to emit on; nil is none.
func (e *emitter) use(g *generation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g == nil {
		e.app, e.ctx, e.pending = nil, caddy.Context{}, nil
		return
	}
	e.app, e.ctx, e.log = g.events, g.ctx, g.logger
}

// emit emits an event soon. It returns at once, and calls data only if
// somebody listens.
func (e *emitter) emit(name string, data func() map[string]any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.app == nil || !e.app.ShouldEmit(name) {
		return
	}
	if len(e.pending) == emitterBacklog {
		if e.lost == 0 {
			e.log.Warn("handlers of events are slower than events come: events are left out", zap.String("event", name))
		}
		e.lost++
		return
	}
	e.pending = append(e.pending, pendingEvent{name, data()})
	if !e.running {
		e.running = true
		go e.run()
	}
}

func (e *emitter) run() {
	for {
		e.mu.Lock()
		if len(e.pending) == 0 || e.app == nil {
			e.running = false
			if e.lost > 0 {
				e.log.Warn("handlers of events have caught up", zap.Int("left_out", e.lost))
				e.lost = 0
			}
			e.mu.Unlock()
			return
		}
		next, app, ctx := e.pending[0], e.app, e.ctx
		e.pending = e.pending[1:]
		e.mu.Unlock()
		if ctx.Err() == nil {
			app.Emit(ctx, next.name, next.data)
		}
	}
}
