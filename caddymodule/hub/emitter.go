package hub

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
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

// eventOfState are the events that tell of a state that a service has got into.
var eventOfState = map[control.State]string{
	control.Waking: eventWaking, control.Awake: eventReady, control.Asleep: eventAsleep, control.Failing: eventFailing,
}

// emit emits what happened to the service, as far as Caddy's events tell it.
func (s *Service) emit(event control.Event) {
	switch e := event.(type) {
	case control.ColdStart:
		s.coldStart = e.Ready
	case control.StartFailure:
		s.lastFailure = e.Failure
	case control.Decision:
		s.Hub.emitter.emit(eventScaled, func() map[string]any {
			return map[string]any{"service": s.Name, "from": e.From, "to": e.To, "reason": scaler.Readable(e.Reason)}
		})
	case control.StateChange:
		name, told := eventOfState[e.To]
		if !told {
			return
		}
		s.Hub.emitter.emit(name, func() map[string]any {
			data := map[string]any{"service": s.Name, "from": string(e.From)}
			if e.To == control.Awake && s.coldStart > 0 {
				data["cold_start_ms"] = s.coldStart.Milliseconds()
			}
			if f := s.lastFailure; e.To == control.Failing && f != nil {
				data["reason"], data["error"] = string(f.Reason), scaler.Readable(f.Short)
			}
			return data
		})
		if e.To == control.Awake {
			s.coldStart = 0
		}
	}
}

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
func (e *emitter) use(g *Generation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g == nil {
		e.app, e.ctx, e.pending = nil, caddy.Context{}, nil
		return
	}
	e.app, e.ctx, e.log = g.Events, g.Ctx, g.Logger
}

// emit emits an event soon. It returns at once, and calls data only if
// there is a listener.
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
