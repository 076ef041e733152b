package caddymodule

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// headerWaiting marks the request by which the waiting page listens. It goes
// to the very URL of the page, so that it takes the same way through whatever
// matchers, prefixes and authentication there are; that is why it is no path
// of its own. A page of another origin cannot send it unasked.
const headerWaiting = "Usher-Waiting"

// listens says whether r is sent by the waiting page.
func listens(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Header.Get(headerWaiting) != ""
}

// lookAgain is how often an open page is told where in the line it is. It
// also keeps the connection from being taken for dead.
const lookAgain = 2 * time.Second

// retryPause is the least time between two tries for a place in the line.
const retryPause = 250 * time.Millisecond

// stream answers the waiting page with events: `state` for what there is to
// see, `go` when it is its turn, `bye` when the server ends. It takes no slot
// and is no held request, but as long as it is there, so is the visitor's
// place in the line.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, quiet bool) error {
	s := h.service
	if !s.visitors.open() {
		w.Header().Set("Retry-After", strconv.Itoa(h.WaitingPage.refreshSeconds()))
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set(headerError, codeQueueFull)
		w.WriteHeader(http.StatusServiceUnavailable)
		return nil
	}
	defer s.visitors.closed()
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Dict("usher", zap.String("service", s.name)))
	}

	out := newEventWriter(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // for a proxy in front that would collect it
	// The page asks for the next thing over the same connection.
	defer func() { _ = out.rc.SetWriteDeadline(time.Time{}) }()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { out.endWith(h.place.ended, done) })
	defer watching.Wait()
	defer close(done)

	l := &listener{handler: h, words: wordsFor(r.Header.Get("Accept-Language")), key: keyOf(r), quiet: quiet}
	defer l.leave(h.WaitingPage.linger())
	return l.run(r, out)
}

// listener is one open page.
type listener struct {
	handler *Handler
	words   *words
	key     visitorKey
	quiet   bool

	visitor *visitor
	refusal error     // why there is no visitor
	again   time.Time // when to try again; zero when something changes
}

func (l *listener) leave(linger time.Duration) {
	if l.visitor != nil {
		l.handler.service.visitors.leave(l.visitor, linger)
		l.visitor = nil
	}
}

// enter takes a place in the line, if that is possible now.
func (l *listener) enter() {
	s := l.handler.service
	l.visitor, l.refusal = s.visitors.invite(l.key, l.quiet)
	l.again = time.Time{}
	if r, ok := errors.AsType[*scaler.Refusal](l.refusal); ok {
		l.again = r.Until
	} else if errors.Is(l.refusal, reserver.ErrQueueFull) {
		l.again = time.Now().Add(time.Duration(l.handler.WaitingPage.Refresh))
	}
}

func (l *listener) run(r *http.Request, out *eventWriter) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		changed := l.handler.service.changes.next()
		if l.visitor == nil {
			if l.enter(); !l.again.IsZero() {
				// What ends at that time ends a moment later.
				retry.Reset(max(time.Until(l.again), retryPause))
			}
		}
		var turn <-chan struct{}
		if l.visitor != nil {
			turn = l.visitor.Turn()
		}
		select {
		case <-turn:
		default:
			if out.event(l.state()) != nil {
				return nil
			}
		}
		again := false
		for !again {
			select {
			case <-turn:
				if l.visitor.Reason() == nil {
					// Whoever reads it or not, the time to come runs.
					l.leave(claimPatience)
					_ = out.event(event{"go", []byte("{}")})
					return nil
				}
				l.handler.service.visitors.end(l.visitor)
				l.visitor, again = nil, true
			case <-changed:
				again = true
			case <-retry.C:
				again = true
			case <-tick.C:
				if out.event(l.state()) != nil {
					return nil
				}
			case <-l.handler.place.ended:
				_ = out.event(bye)
				return nil
			case <-r.Context().Done():
				return nil
			}
		}
	}
}

// state is what there is to see now.
func (l *listener) state() event {
	s := l.handler.service
	d := s.look(l.words, l.visitor, &request{service: s, quiet: l.quiet}, l.refusal)
	b, err := json.Marshal(map[string]any{
		"state": d.State, "status": d.Status, "detail": d.Detail, "reason": d.Reason, "place": d.Place,
		"usual": d.Usual, "elapsed": d.Elapsed, "waiting": d.Waiting,
	})
	if err != nil {
		// Texts and numbers can always be encoded.
		return event{"state", []byte("{}")}
	}
	return event{"state", b}
}

// look says what is happening to the service, for a visitor that may be nil,
// or for the request of one who was refused.
func (s *service) look(w *words, v *visitor, q *request, refusal error) PageData {
	d := PageData{Service: s.name, State: stateLine}
	if refusal != nil {
		q.explain(refusal)
		d.State, d.Reason = q.why.code, q.why.detail
		if s.live.Load().detailFull {
			d.Reason = q.why.fullDetail
		}
		w.fill(&d, time.Duration(q.why.retryAfter)*time.Second)
		return d
	}
	if s.reserver.Stats().Open == 0 {
		d.State = stateStarting
		since, usual := s.loop.ColdStart()
		d.Usual = usual.Milliseconds()
		if !since.IsZero() {
			d.Elapsed = time.Since(since).Milliseconds()
		}
	}
	if v != nil {
		d.Place = w.place(v.Ahead())
	}
	w.fill(&d, 0)
	return d
}

// signal tells everybody who listens that something has changed.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that is closed at the next change.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// tell never blocks, and costs nothing while nobody listens.
func (s *signal) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
