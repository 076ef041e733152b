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

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
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

// lookAgain is how often an open page is told where in the queue it is. It
// also keeps the connection from being taken for dead.
const lookAgain = 2 * time.Second

// retryPause is the least time between two tries for a place in the queue.
const retryPause = 250 * time.Millisecond

// stream answers the waiting page with events: `state` for what there is to
// see, `go` when it is its turn, `bye` when the server ends. It takes no slot
// and is no held request, but as long as it is there, so is the visitor's
// place in the queue.
func (h *Handler) stream(f found, w http.ResponseWriter, r *http.Request, quiet bool, turn *turn) error {
	s := f.service
	w = answer.Seal(w)
	if !s.Visitors.Open() {
		w.Header().Set("Retry-After", strconv.Itoa(h.WaitingPage.refreshSeconds()))
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set(answer.HeaderError, codeQueueFull)
		w.WriteHeader(http.StatusServiceUnavailable)
		return nil
	}
	defer s.Visitors.Closed()
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Dict("usher", zap.String("service", s.Name)))
	}

	out := answer.NewEventWriter(w)
	w.Header().Set("Content-Type", answer.TypeEvents)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // for a proxy in front that would collect it
	// The page asks for the next thing over the same connection.
	defer func() { _ = out.Rc.SetWriteDeadline(time.Time{}) }()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { out.EndWith(h.shared.ended, done) })
	defer watching.Wait()
	defer close(done)

	l := &listener{handler: h, service: s, choice: f.choice, translation: translationFor(answer.Preferences(r.Header, "Accept-Language")), key: keyOf(r), quiet: quiet, turn: turn}
	defer l.leave(h.WaitingPage.linger())
	return l.run(r, out)
}

// listener is one open page.
type listener struct {
	handler     *Handler
	service     *hub.Service
	choice      choice // of its side; only with a split
	translation *translation
	key         hub.VisitorKey
	quiet       bool
	turn        *turn

	visitor *hub.Visitor
	stop    func()    // ends the search for the place that the visitor has elsewhere
	refusal error     // why there is no visitor
	again   time.Time // when to try again; zero when something changes
}

func (l *listener) leave(linger time.Duration) {
	if l.visitor != nil {
		l.stop()
		l.service.Visitors.Leave(l.visitor, linger)
		l.visitor = nil
	}
}

// elsewhere reports whether the visitor could wait at another side of its split.
func (l *listener) elsewhere(r *http.Request) bool {
	x, ok := l.handler.finder.(*splitter)
	if !ok {
		return false
	}
	_, ok = x.after(l.choice, r, l.refusal)
	return ok
}

// request is what the page waits with.
func (l *listener) request() *request {
	return &request{handler: l.handler, service: l.service, quiet: l.quiet, turn: l.turn}
}

// enter takes a place in the queue, if that is possible now.
func (l *listener) enter() {
	l.visitor, l.refusal = l.service.Visitors.Invite(l.key, l.request().asks())
	l.again = time.Time{}
	if v := l.visitor; v != nil {
		l.stop, _ = l.service.Visitors.Seek(l.key, func(p hub.Place) { v.Advance(p.Age) })
	}
	if r, ok := errors.AsType[*control.Refusal](l.refusal); ok {
		l.again = r.Until
	} else if errors.Is(l.refusal, reserver.ErrQueueFull) {
		l.again = time.Now().Add(time.Duration(l.handler.WaitingPage.Refresh))
	}
}

func (l *listener) run(r *http.Request, out *answer.EventWriter) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		changed := l.service.Changes.Next()
		if l.visitor == nil {
			if l.enter(); !l.again.IsZero() {
				// What ends at that time ends a moment later.
				retry.Reset(max(time.Until(l.again), retryPause))
			}
			if l.refusal != nil && l.elsewhere(r) {
				// The page asks again, and that request goes to the next side.
				_ = out.Event(answer.Event{Name: "go", Data: []byte("{}")})
				return nil
			}
		}
		var turn <-chan struct{}
		if l.visitor != nil {
			turn = l.visitor.Turn()
		}
		select {
		case <-turn:
		default:
			if out.Event(l.state()) != nil {
				return nil
			}
		}
		again := false
		for !again {
			select {
			case <-turn:
				if l.visitor.Reason() == nil {
					// The time to claim the slot runs, even if the client does not read.
					l.leave(claimPatience)
					_ = out.Event(answer.Event{Name: "go", Data: []byte("{}")})
					return nil
				}
				l.stop()
				l.service.Visitors.End(l.visitor)
				l.visitor, again = nil, true
			case <-changed:
				again = true
			case <-retry.C:
				again = true
			case <-tick.C:
				if out.Event(l.state()) != nil {
					return nil
				}
			case <-l.handler.shared.ended:
				_ = out.Event(answer.Bye)
				return nil
			case <-r.Context().Done():
				return nil
			}
		}
	}
}

// state is what there is to see now.
func (l *listener) state() answer.Event {
	d := look(l.service, l.translation, l.visitor, l.request(), l.refusal)
	b, err := json.Marshal(map[string]any{
		"state": d.State, "status": d.Status, "detail": d.Detail, "reason": d.Reason, "place": d.Place,
		"usual": d.Usual, "elapsed": d.Elapsed, "waiting": d.Waiting, "attempts": d.Attempts,
	})
	if err != nil {
		// Texts and numbers can always be encoded.
		return answer.Event{Name: "state", Data: []byte("{}")}
	}
	return answer.Event{Name: "state", Data: b}
}

// look describes the state of the service for a visitor, which may be nil, or
// for a rejected request.
func look(s *hub.Service, w *translation, v *hub.Visitor, q *request, refusal error) PageData {
	d := PageData{Service: s.Name, State: stateQueue}
	if refusal != nil {
		q.explain(refusal)
		d.State, d.Reason = q.why.code, q.why.detail
		if s.Live.Load().DetailFull {
			d.Reason = q.why.fullDetail
		}
		if d.Attempts = s.Loop.Status().Start.Failed; d.State == codeStartFailed && d.Attempts > 1 && q.why.attempted {
			d.Reason = w.attempts(d.Attempts, d.Reason)
		}
		w.fill(&d, time.Duration(q.why.retryAfter)*time.Second)
		if q.why.title != "" {
			// Nothing is full: no request waits.
			if d.Status = w.busy; q.why.unready {
				d.Status = w.status[stateStarting]
			}
		}
		return d
	}
	var retryIn time.Duration
	if s.Reserver.Stats().Open == 0 {
		d.State = stateStarting
		start := s.Loop.Status().Start
		d.Attempts, d.Reason = start.Failed, startInWords(s, w, start)
		retryIn = time.Until(start.Next)
		since, usual := s.Loop.ColdStart()
		d.Usual = usual.Milliseconds()
		if !since.IsZero() {
			d.Elapsed = time.Since(since).Milliseconds()
		}
	}
	if v != nil {
		d.Place = w.place(v.Ahead())
	}
	w.fill(&d, retryIn)
	return d
}

// startInWords says what went wrong with the starts so far, or with the one in
// progress; empty if all is well. Visitors are told as much as clients are.
func startInWords(s *hub.Service, w *translation, start control.StartStatus) string {
	told := func(f *scaler.Failure) string {
		if s.Live.Load().DetailFull {
			return f.Error()
		}
		return scaler.Readable(f.Short)
	}
	switch {
	case start.Failed > 0 && start.Failure != nil:
		return w.attempts(start.Failed, told(start.Failure))
	case start.Problem != nil:
		return told(start.Problem)
	}
	return ""
}
