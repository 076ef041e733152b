package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// request is one request's way through Usher: its reservation, what is known
// of its attempts, and what users are told about it. One allocation holds all
// that every request needs; what few need is behind a pointer.
type request struct {
	handler     *Handler
	service     *service
	came        *http.Request   // as the server knows it
	ctx         context.Context // that of came, and can be ended with the instance
	reservation reserver.Reservation
	cancel      context.CancelCauseFunc
	trace       httptrace.ClientTrace
	writer      responseWriter
	body        *requestBody // nil if there is none
	replacer    *caddy.Replacer
	vars        map[string]any

	// of one that may wait in the browser; page is nil for all others
	page *WaitingPage
	key  *visitorKey

	// of the wait
	deadline time.Time // zero until it waits
	waited   time.Duration
	granted  time.Time // when it got its slot; zero if it did not wait

	// What is small stands together: thousands of these wait at a time.
	quiet    bool
	inLine   bool
	cold     bool
	pageLate bool  // its turn had come: it may wait longer before it gets the page again
	seen     int32 // attempts that an instance may have seen

	// of the instance that it has, or had last
	instance *reserver.Instance
	address  string
	ties     *ties // nil where none are needed

	// of all instances with ties that it had: a connection can come about
	// when the request that asked for it is elsewhere
	dials atomic.Pointer[dials]

	// of the attempts
	attempt attempt
	refusal error // why a further attempt got no slot

	why *explanation // of the error that Usher answered with; nil without one
}

type requestKey struct{}

// forwardContext is a request as the context of the request behind the handler.
type forwardContext request

// Deadline implements context.Context.
func (c *forwardContext) Deadline() (time.Time, bool) { return c.ctx.Deadline() }

// Done implements context.Context.
func (c *forwardContext) Done() <-chan struct{} { return c.ctx.Done() }

// Err implements context.Context.
func (c *forwardContext) Err() error { return c.ctx.Err() }

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
	return c.ctx.Value(key)
}

// requestOf returns the request that the handler has put into the context.
func requestOf(ctx context.Context) *request {
	q, _ := ctx.Value(requestKey{}).(*request)
	return q
}

func newRequest(h *Handler, w http.ResponseWriter, r *http.Request, quiet bool) *request {
	q := &request{handler: h, service: h.service, quiet: quiet, came: r}
	q.writer.ResponseWriter = w
	q.writer.request = q

	q.ctx, q.cancel = context.WithCancelCause(r.Context())
	q.reservation.Interrupt = q.cancel
	// Caddy wraps every body, so that one that is not there looks like one
	// that is; the length tells.
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		q.body = newRequestBody(r, &h.service.hub.held)
	}

	q.replacer, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if q.replacer != nil {
		q.replacer.Map(q.placeholder)
	}
	q.vars, _ = r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	// Caddy makes a new table at each call: not for a server without a log.
	if server := h.place.server; server == nil || server.Logs != nil {
		if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
			extra.Set(zap.Object("usher", q))
		}
	}
	return q
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
	q.service.outcome(outcomeGranted, q.waited)
	return nil
}

// ask asks for a slot, as reserver.Service.Reserve does. One who has waited in
// the browser has a place in the line already.
func (q *request) ask() (bool, error) {
	if q.page != nil {
		if v := q.service.visitors.find(*q.key); v != nil {
			return q.comeBack(v)
		}
	}
	return q.service.reserver.Reserve(&q.reservation, q.quiet)
}

// seated takes note of the instance on which q has its slot now.
func (q *request) seated() {
	i := q.reservation.Instance()
	q.instance, q.address = i, dialAddress(i.Network, i.Address)
	if q.ties = tiesOf(i); q.ties != nil {
		if q.dials.Load() == nil {
			q.dials.Store(new(dials))
		}
		q.dials.Load().add(q.ties)
	}
}

// dialAddress writes an address as Caddy does.
func dialAddress(network, address string) string {
	if network == "unix" {
		return "unix/" + address
	}
	return address
}

// errWaitTimeout is the reason for the end of a wait that took too long.
var errWaitTimeout = errors.New("no slot became free in time")

// errClientGone is the reason for the end of a wait whose client left.
var errClientGone = errors.New("the client is gone")

// hold waits in the line.
func (q *request) hold() (err error) {
	start := time.Now()
	if q.deadline.IsZero() {
		q.deadline = start.Add(time.Duration(q.handler.WaitTimeout))
	}
	if q.service.reserver.Stats().Open == 0 {
		q.cold = true
	}
	q.inLine = true
	if end := q.traceWait(); end != nil {
		defer func() { end(err) }()
	}
	patience, late := q.patience()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	gone := q.body.readAhead()

	select {
	case err = <-q.reservation.Granted():
	case <-timer.C:
		err = late
	case <-q.ctx.Done():
		err = errClientGone
	case <-gone:
		err = errClientGone
	}
	q.inLine = false
	q.body.stopReadingAhead()
	now := time.Now()
	q.waited += now.Sub(start)
	if errors.Is(err, errWaitingPage) {
		err = q.service.visitors.keep(*q.key, &q.reservation, q.page.linger())
	}
	if errors.Is(err, errWaitTimeout) || errors.Is(err, errClientGone) {
		if q.reservation.Cancel() {
			if errors.Is(err, errWaitTimeout) {
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

// again gets a slot for a further attempt. If there is none the reason is
// kept: the proxy would lose it.
func (q *request) again() {
	if q.refusal != nil {
		return
	}
	switch cause := context.Cause(q.ctx); {
	case errors.Is(cause, scaler.ErrGone):
		q.refusal = scaler.ErrGone
	case cause != nil:
		q.refusal = errClientGone
	}
	if q.refusal != nil {
		// No further attempt can succeed.
		q.reservation.Release(reserver.Neutral)
		return
	}
	a := &q.attempt
	if !a.asked {
		// Without the rules the proxy repeats only what could not be dialled.
		a.untraced = reserver.Refused
	}
	fate := q.fate()
	if q.maybeSeen() {
		q.seen++
		if !q.attempt.approved {
			q.reservation.Release(fate)
			q.refusal = errSeen
			return
		}
	}
	q.reset()
	ok, err := q.reservation.Again(fate)
	if !ok && err == nil {
		err = q.hold()
	}
	if err != nil {
		q.refusal = err
		return
	}
	q.seated()
}

// finish takes what the next handlers have returned.
func (q *request) finish(err error) error {
	gone := errors.Is(context.Cause(q.ctx), scaler.ErrGone)
	if a := &q.attempt; err == nil && q.ties != nil && a.handed && !a.tried.Load() {
		atomic.StoreUint32(&q.handler.untraced, 1)
	}
	q.attempt.untraced = untracedFate(err)
	q.reservation.Release(q.fate())
	switch {
	case gone && (q.writer.suppressed || q.refusal != nil):
		return caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: instance %s: %w", q.service.name, q.instance.ID, scaler.ErrGone))
	case err == nil || q.refusal == nil || errors.Is(q.refusal, errSeen):
		return err
	case errors.Is(q.refusal, errClientGone):
	case q.seen > 0 || q.maybeSeen():
		return caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: an instance may have seen the request, and there is none for another try: %w", q.service.name, q.refusal))
	}
	return q.refuse(q.refusal)
}

// end releases whatever is still held. It runs in any case, a panic included.
func (q *request) end() {
	if !q.granted.IsZero() {
		q.service.served(time.Since(q.granted))
	}
	if q.inLine {
		q.reservation.Cancel()
	}
	q.reservation.Release(q.fate())
	q.cancel(nil)
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

// placeholder implements the placeholders {http.usher.*}.
func (q *request) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.usher.")
	if !ok {
		return nil, false
	}
	switch name {
	case "service":
		return q.service.name, true
	case "wait_ms":
		return q.waited.Milliseconds(), true
	case "cold":
		return q.cold, true
	case "address":
		return q.address, true
	case "instance", "revision":
		switch {
		case q.instance == nil:
			return "", true
		case name == "instance":
			return q.instance.ID, true
		}
		return q.instance.Revision, true
	case "error", "error.detail", "retry_after":
		switch {
		case q.why == nil:
			return "", true
		case name == "error":
			return q.why.code, true
		case name == "error.detail":
			return q.why.fullDetail, true
		}
		return q.why.retryAfter, true
	}
	return nil, false
}

// MarshalLogObject implements zapcore.ObjectMarshaler for the access log.
func (q *request) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("service", q.service.name)
	if q.instance != nil {
		enc.AddString("instance", q.instance.ID)
		enc.AddString("address", q.address)
	}
	enc.AddInt64("wait_ms", q.waited.Milliseconds())
	enc.AddBool("cold", q.cold)
	if q.why != nil {
		enc.AddString("error", q.why.code)
	}
	return nil
}
