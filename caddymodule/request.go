package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
)

// request is one request's way through Usher: its reservation, what is known
// of its attempts, and what users are told about it. One allocation holds all
// that every request needs; what few need is behind a pointer.
type request struct {
	handler     *Handler
	service     *hub.Service
	came        *http.Request   // as the server knows it
	ctx         context.Context // of came: it ends with the client
	reservation reserver.Reservation
	writer      responseWriter
	body        *requestBody // nil if there is none
	replacer    *caddy.Replacer
	vars        map[string]any
	choice      choice // of its side; only with a split

	// how it asks for its slot; nil if it asks as most do
	turn *turn

	// of one that may wait in the browser; page is nil for all others
	page *WaitingPage
	key  *hub.VisitorKey

	// of the wait
	deadline time.Time // zero until it waits
	waited   time.Duration
	granted  time.Time // when it got its slot; zero if it did not wait

	// What is small stands together: thousands of these wait at a time.
	quiet    bool
	queued   bool
	moves    uint8 // to another instance, after a handshake that broke off
	cold     bool
	pinned   bool  // no other instance has what it asks for
	pageLate bool  // its turn had come: it may wait longer before it gets the page again
	sought   bool  // other Caddys were asked for the place of its visitor
	seen     int32 // attempts that an instance may have seen

	// of the instance that it has, or had last
	instance *reserver.Instance
	address  string
	guard    *connGuard // nil where none are needed
	unpin    func()     // releases the address that the transport was given; nil if it needs no release

	// of all instances with a guard that it had: the transport can connect
	// when the request that asked for it is elsewhere
	dials atomic.Pointer[dials]

	// of the attempts; there is none before the first slot
	attempt atomic.Pointer[attempt]      // the last
	trace   *httptrace.ClientTrace       // of all
	gone    atomic.Pointer[goneInstance] // the last one that it was interrupted on
	refusal error                        // why a further attempt got no slot, or is of no use

	// of handlers `usher` around and inside of this one, in the same route or
	// in an error route
	outer, inner *request

	why *explanation // of the error that Usher answered with; nil without one
}

type requestKey struct{}

// forwardContext is a request as the context of the request behind the handler.
//
// Each attempt has a context of its own, which ends with the client and with
// the instance, and reverse_proxy makes all attempts with the one context of
// the request that it was given. So this one is that of the attempt under way:
// what was derived from it during an earlier attempt ends with that attempt.
type forwardContext request

// under returns the context of the attempt under way.
func (c *forwardContext) under() context.Context { return c.attempt.Load().ctx }

// Deadline implements context.Context.
func (c *forwardContext) Deadline() (time.Time, bool) { return c.ctx.Deadline() }

// Done implements context.Context.
func (c *forwardContext) Done() <-chan struct{} { return c.under().Done() }

// Err implements context.Context.
func (c *forwardContext) Err() error { return c.under().Err() }

// Value implements context.Context. What a proxy asks for all the time it
// answers itself: the way down to Caddy's own values is long.
func (c *forwardContext) Value(key any) any {
	switch key := key.(type) {
	case requestKey:
		return (*request)(c)
	case caddy.CtxKey:
		switch {
		case key == caddy.ReplacerCtxKey && c.replacer != nil:
			return c.replacer
		case key == caddyhttp.VarsCtxKey && c.vars != nil:
			return c.vars
		}
	}
	return c.under().Value(key)
}

// requestOf returns the request that the handler has put into the context.
func requestOf(ctx context.Context) *request {
	q, _ := ctx.Value(requestKey{}).(*request)
	return q
}

func newRequest(h *Handler, s *hub.Service, w http.ResponseWriter, r *http.Request, quiet bool) *request {
	q := &request{handler: h, service: s, quiet: quiet}
	q.reservation.Interrupter = q
	q.take(w, r)
	return q
}

// take makes q the request r, which is answered through w.
func (q *request) take(w http.ResponseWriter, r *http.Request) {
	h := q.handler
	q.came, q.ctx = r, r.Context()
	q.writer.ResponseWriter = w
	q.writer.request = q
	// Caddy wraps every body, so that one that is not there looks like one
	// that is; the length tells.
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		q.body = newRequestBody(r, &h.shared.readAhead.held)
		q.body.duplex = h.shared.server != nil && h.shared.server.EnableFullDuplex
		h.shared.readAhead.uploads.join(q.body, r)
	}

	q.replacer, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if q.replacer != nil {
		if outer, ok := q.replacer.Get(placeholderRequest); ok {
			q.outer, _ = outer.(*request)
			q.outer.inner = q
		} else {
			q.replacer.Map(q.placeholder)
		}
	}
	q.vars, _ = r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	// Caddy makes a new table at each call: not for a server without a log.
	if server := h.shared.server; server == nil || server.Logs != nil {
		if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
			extra.Set(zap.Object("usher", q))
		}
	}
}

// with returns the request as it came, with another context and the body that
// was read ahead.
func (q *request) with(ctx context.Context) *http.Request {
	r := q.came.WithContext(ctx)
	if q.body != nil {
		r.Body = q.body
	}
	return r
}

// reserve gets a slot, waiting for it if it has to.
func (q *request) reserve() error {
	ok, err := q.ask()
	if !ok && err == nil {
		err = q.hold()
	}
	if err != nil {
		return err
	}
	q.seated()
	q.service.Outcome(hub.OutcomeGranted, q.waited)
	return nil
}

// ask asks for a slot, as reserver.Service.Reserve does. A visitor's
// request already has a place in the queue.
func (q *request) ask() (bool, error) {
	if q.page != nil {
		if v := q.service.Visitors.Find(*q.key); v != nil {
			return q.comeBack(v)
		}
	}
	return q.service.Reserver.Reserve(&q.reservation, q.asks())
}

// seek asks the other Caddys for the place of the visitor that has sent q, which
// waits. called is closed if its turn had come there. stop has to be called.
func (q *request) seek() (called <-chan struct{}, stop func()) {
	if q.page == nil {
		return nil, func() {}
	}
	turn := make(chan struct{})
	stop, q.sought = q.service.Visitors.Seek(*q.key, func(p hub.Place) {
		q.reservation.Advance(p.Age, p.Called)
		if p.Called {
			close(turn)
		}
	})
	return turn, stop
}

// seated takes note of the instance on which q has its slot now.
func (q *request) seated() {
	i := q.reservation.Instance()
	q.begin(i)
	q.instance, q.address = i, hub.DialAddress(i.Network, i.Address)
	if q.guard = guardOf(i); q.guard != nil {
		if q.dials.Load() == nil {
			q.dials.Store(new(dials))
		}
		q.dials.Load().add(q.guard)
	}
	q.countSession()
}

// errWaitTimeout is the reason for the end of a wait that took too long.
var errWaitTimeout = errors.New("no slot became free in time")

// errClientGone is the reason for the end of a wait whose client left.
var errClientGone = errors.New("the client is gone")

// hold waits in the queue.
func (q *request) hold() (err error) {
	start := time.Now()
	if q.deadline.IsZero() {
		q.deadline = start.Add(time.Duration(q.handler.WaitTimeout))
	}
	if q.service.Reserver.Stats().Open == 0 {
		q.cold = true
	}
	q.queued = true
	if end := q.traceWait(); end != nil {
		defer func() { end(err) }()
	}
	err = q.await()
	q.queued = false
	q.body.stopReadingAhead()
	now := time.Now()
	q.waited += now.Sub(start)
	if errors.Is(err, errWaitingPage) {
		if away, granted := q.service.Visitors.Keep(*q.key, &q.reservation, q.page.linger()); !away {
			err = granted
		}
	}
	if errors.Is(err, errWaitTimeout) || errors.Is(err, errClientGone) || errors.Is(err, errUploadTooLarge) {
		if q.turn != nil {
			q.turn.bound = q.bound()
		}
		if q.reservation.Cancel() {
			if !errors.Is(err, errClientGone) {
				// The slot came in the last moment: it is as good as any.
				err = nil
			} else {
				q.reservation.Release(reserver.Neutral)
			}
		}
	}
	if err == nil {
		q.granted = now
	}
	return err
}

// await waits for a slot, or for what ends the wait before.
func (q *request) await() error {
	called, stop := q.seek()
	defer stop()
	patience, late := q.patience()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	refused := q.body.refused()
	gone := q.body.readAhead()
	for {
		select {
		case err := <-q.reservation.Granted():
			return err
		case <-timer.C:
			if errors.Is(late, errWaitingPage) && q.bound() {
				// The page would come back again and again, to wait for the same slot.
				q.page = nil
				patience, late = q.patience()
				timer.Reset(patience)
				continue
			}
			return late
		case <-called:
			called, q.pageLate = nil, true
			patience, late = q.patience()
			timer.Reset(patience)
		case <-q.ctx.Done():
			return errClientGone
		case <-gone:
			return errClientGone
		case <-refused:
			return errUploadTooLarge
		}
	}
}

// forwarded returns the request for the next handlers: with the reservation,
// and with a trace that tells what becomes of each attempt.
func (q *request) forwarded() *http.Request {
	if q.handler.ServerTiming {
		q.writer.Header().Add("Server-Timing", q.serverTiming())
	}
	return q.with(httptrace.WithClientTrace((*forwardContext)(q), q.traced()))
}

// movesMax is how often a request goes to another instance because a handshake
// broke off. Where the transport is wrong, all of them do.
const movesMax = 2

// again gets a slot for a further attempt. If there is none the reason is
// kept: the proxy would lose it.
func (q *request) again() {
	if q.refusal != nil {
		return
	}
	a, outcome := q.attempt.Load(), q.outcome()
	switch {
	case q.ctx.Err() != nil:
		q.refusal = errClientGone
	case a.outcome == unsendable:
		q.refusal = a.err
	case q.pinned:
		q.refusal = errPinned
	case q.maybeSeen():
		q.seen++
		if cause := q.interrupted(); !a.approved && cause != nil {
			q.refusal = cause
		} else if !a.approved {
			q.refusal = errSeen
		}
	}
	if q.refusal != nil {
		q.reservation.Release(outcome)
		return
	}
	if a.withheld.Load() {
		q.body.withhold(false)
	}
	if a.outcome == unleased {
		// Else it would get a slot again that it may not use.
		q.service.AwaitLease(q.ctx)
	}
	ok, err := q.reservation.Requeue(outcome)
	switch {
	case a.outcome == brokenOff:
		_, err = q.move(ok, err, a)
	case !ok && err == nil:
		err = q.hold()
	}
	if err != nil {
		q.refusal = err
		return
	}
	q.seated()
}

// move takes what asking for another instance gave, after a handshake that
// broke off. The request does not wait for one, and does not try the same again.
func (q *request) move(ok bool, err error, a *attempt) (bool, error) {
	q.moves++
	if !ok && err == nil {
		ok = q.reservation.Cancel()
	}
	if ok && q.reservation.Instance() != a.instance {
		return true, nil
	}
	q.reservation.Release(reserver.Neutral)
	return false, a.err
}

// finish takes what the next handlers have returned.
func (q *request) finish(err error) error {
	q.writer.dropTrailers()
	gone := q.interrupted()
	a := q.attempt.Load()
	if q.guard != nil && a.outcome == answered && !a.tried.Load() {
		atomic.OrUint32(&q.handler.noted, notedUntraced)
	}
	if err == nil && a.upstream == nil && a.outcome == unsent {
		q.unused()
	}
	q.reservation.Release(q.outcome())
	if err != nil || q.writer.suppressed {
		if f := q.instanceEnd(); f != nil {
			return q.answerEnded(f)
		}
	}
	switch {
	case gone != nil && (q.writer.suppressed || q.refusal != nil):
		return q.fail(caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: instance %s: %w", q.service.Name, q.instance.ID, gone)))
	case err == nil || q.refusal == nil || errors.Is(q.refusal, errSeen) || a.err != nil && errors.Is(q.refusal, a.err):
		return q.fail(err)
	case errors.Is(q.refusal, errClientGone):
	case q.seen > 0 || q.maybeSeen():
		return q.fail(caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: an instance may have seen the request, and there is none for another try: %w", q.service.Name, q.refusal)))
	}
	return q.refuse(q.refusal)
}

// fail returns an error of the next handlers. The server's error routes have
// the request as it came. If a part of its body was read while it waited they
// would not get that, and a fallback would send the rest as if it were all: so
// they run here.
func (q *request) fail(err error) error {
	if err == nil || q.writer.wrote || !q.body.wasReadAhead() {
		return err
	}
	shown, ok := errors.AsType[caddyhttp.HandlerError](err)
	if !ok {
		shown = caddyhttp.Error(http.StatusInternalServerError, err)
	}
	q.restore()
	if q.offer(answer.Seal(q.writer.ResponseWriter), shown, nil) {
		return nil
	}
	return err
}

// unused says, once for each place, that a request was answered although no
// proxy asked for the instance on which it has its slot.
func (q *request) unused() {
	if q.writer.status >= http.StatusBadRequest {
		return // refused on the way, by authentication, say
	}
	if atomic.OrUint32(&q.handler.noted, notedUnused)&notedUnused != 0 {
		return
	}
	q.service.Log().Warn("a request had a slot and was not sent to the instance: give the handler 'usher' a proxy, or let a reverse_proxy with the dynamic upstreams 'usher' follow in the same route. "+
		"A handler that answers requests by itself, such as a cache, belongs before 'usher'",
		zap.String("instance", q.instance.ID))
}

// end releases whatever is still held. It runs in any case, a panic included.
func (q *request) end() {
	if !q.granted.IsZero() && !q.writer.streams {
		q.service.Loop.Served(time.Since(q.granted))
	}
	if q.outer != nil && q.outer.inner == q {
		q.outer.inner = nil
	}
	if q.queued {
		q.reservation.Cancel()
	}
	q.reservation.Release(q.outcome())
	if a := q.attempt.Load(); a != nil {
		a.cancel(nil)
	}
	q.endPin()
	q.body.end(q.writer.ResponseWriter)
}

// timingPrefix is how the Server-Timing of Usher begins.
const timingPrefix = "usher-wait;dur="

func (q *request) serverTiming() string {
	t := timingPrefix + strconv.FormatInt(q.waited.Milliseconds(), 10)
	if q.cold {
		t += ", usher-cold"
	}
	return t
}
