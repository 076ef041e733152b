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
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// request is one request's way through Usher: its reservation, what is known
// of its attempts, and what users are told about it. One allocation holds all
// of it.
type request struct {
	handler     *Handler
	service     *service
	came        *http.Request   // as the server knows it
	ctx         context.Context // that of came, and can be ended with the instance
	forward     forwardContext
	reservation reserver.Reservation
	cancel      context.CancelCauseFunc
	trace       httptrace.ClientTrace
	writer      responseWriter
	body        requestBody
	replacer    *caddy.Replacer

	// of one that may wait in the browser; page is nil for all others
	page *WaitingPage
	key  visitorKey

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
	instance, revision, address string
	ties                        *ties // nil where none are needed

	// of all instances that it had: a connection can come about when the
	// request that asked for it is elsewhere
	dials dials

	// of the attempts
	attempt attempt
	refusal error // why a further attempt got no slot

	// of the error that Usher answered with
	code, detail, fullDetail string
	retryAfter               int
}

// attempt is what is known about one attempt to send the request. The trace
// is called from several goroutines.
type attempt struct {
	handed    bool        // the proxy was given the instance
	asked     bool        // the retry rules were asked: it is no dial error
	direct    bool        // the transport looked for one to the instance; where ties are needed
	tried     atomic.Bool // the transport looked for a connection
	connected atomic.Bool
	wrote     atomic.Bool // the header, at least, may have left
	answered  atomic.Bool
	starved   atomic.Bool // no connection for lack of something of our own
	withheld  atomic.Bool // nothing was written to a connection of which it is not known where it leads
	approved  bool        // the retry rules allow another attempt

	// untraced is the fate where the transport does not tell the trace, as
	// that of FastCGI.
	untraced reserver.Fate
}

func (a *attempt) reset() {
	a.handed, a.asked, a.direct = false, false, false
	a.tried.Store(false)
	a.connected.Store(false)
	a.wrote.Store(false)
	a.answered.Store(false)
	a.starved.Store(false)
	a.withheld.Store(false)
	a.approved = false
	a.untraced = reserver.Neutral
}

// reset begins another attempt.
func (q *request) reset() {
	if q.attempt.withheld.Load() {
		q.body.withhold(false)
	}
	q.attempt.reset()
}

type requestKey struct{}

// forwardContext is the context of the request behind the handler. It is a
// part of the request, which saves an allocation for each.
type forwardContext struct {
	context.Context //nolint:containedctx // it is one
	request         *request
}

// Value implements context.Context.
func (c *forwardContext) Value(key any) any {
	if key == (requestKey{}) {
		return c.request
	}
	return c.Context.Value(key)
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
		q.body.init(r, &h.service.hub.held)
	}

	q.replacer, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if q.replacer != nil {
		q.replacer.Map(q.placeholder)
	}
	// Caddy makes a new table at each call: not for a server without a log.
	if h.server == nil || h.server.Logs != nil {
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
	if q.body.rest != nil {
		r.Body = &q.body
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
		if v := q.service.visitors.find(q.key); v != nil {
			return q.comeBack(v)
		}
	}
	return q.service.reserver.Reserve(&q.reservation, q.quiet)
}

// seated takes note of the instance on which q has its slot now.
func (q *request) seated() {
	i := q.reservation.Instance()
	q.instance, q.revision, q.address = i.ID, i.Revision, dialAddress(i.Network, i.Address)
	if q.ties = tiesOf(i); q.ties != nil {
		q.dials.add(q.ties)
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
		err = q.service.visitors.keep(q.key, &q.reservation, q.page.linger())
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

// forwarded returns the request for the next handlers: with the reservation,
// and with a trace that tells what becomes of each attempt.
func (q *request) forwarded() *http.Request {
	if q.handler.ServerTiming {
		q.writer.Header().Add("Server-Timing", q.serverTiming())
	}
	a := &q.attempt
	q.trace = httptrace.ClientTrace{
		GetConn: func(addr string) {
			a.tried.Store(true)
			a.direct = q.ties != nil && q.toInstance(addr)
		},
		GotConn:              q.gotConn,
		WroteHeaders:         func() { a.wrote.Store(true) },
		GotFirstResponseByte: q.firstByte,
		ConnectDone: func(_, addr string, err error) {
			switch {
			case err == nil:
				q.dials.done(addr)
			case ownShortage(err):
				a.starved.Store(true)
			}
		},
	}
	q.forward = forwardContext{q.ctx, q}
	return q.with(httptrace.WithClientTrace(&q.forward, &q.trace))
}

// firstByte takes note that the instance answers.
func (q *request) firstByte() {
	q.attempt.answered.Store(true)
	if q.cold {
		q.service.loop.Answered()
	}
}

// ownShortage says whether a connection could not be made for a reason that
// tells nothing about the instance.
func ownShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// fate judges the last attempt.
func (q *request) fate() reserver.Fate {
	a := &q.attempt
	switch {
	case a.withheld.Load():
		return reserver.Doubted
	case a.answered.Load():
		return reserver.Answered
	case !a.tried.Load() && a.handed && q.ctx.Err() == nil && !q.body.failed():
		return a.untraced
	case !a.tried.Load(), a.starved.Load(), q.ctx.Err() != nil, q.body.failed():
		return reserver.Neutral
	case !a.connected.Load():
		return reserver.Refused
	}
	return reserver.Failed
}

// maybeSeen says whether the instance may have seen something of the last
// attempt.
func (q *request) maybeSeen() bool {
	a := &q.attempt
	// Of a request that was withheld the header may have got into a buffer.
	return !a.withheld.Load() && (a.wrote.Load() || a.answered.Load() || a.handed && a.asked && !a.tried.Load())
}

// errSeen ends a request that an instance may have seen and that no rule
// allows to repeat.
var errSeen = errors.New("an instance may have seen the request, and the retry rules do not allow to repeat it")

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
	if a := &q.attempt; err == nil && q.ties != nil && a.handed && !a.tried.Load() && q.handler.untraced != nil {
		q.handler.untraced.Store(true)
	}
	q.attempt.untraced = untracedFate(err)
	q.reservation.Release(q.fate())
	switch {
	case gone && (q.writer.suppressed || q.refusal != nil):
		return caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: instance %s: %w", q.service.name, q.instance, scaler.ErrGone))
	case err == nil || q.refusal == nil || errors.Is(q.refusal, errSeen):
		return err
	case errors.Is(q.refusal, errClientGone):
	case q.seen > 0 || q.maybeSeen():
		return caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: an instance may have seen the request, and there is none for another try: %w", q.service.name, q.refusal))
	}
	return q.refuse(q.refusal)
}

// untracedFate judges an attempt by what the proxy returned.
func untracedFate(err error) reserver.Fate {
	if err == nil {
		return reserver.Answered
	}
	if _, ok := errors.AsType[reverseproxy.DialError](err); ok {
		return reserver.Refused
	}
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok && e.StatusCode >= http.StatusBadGateway {
		return reserver.Failed
	}
	// An error of a route that handled the answer, say.
	return reserver.Neutral
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
	case "instance":
		return q.instance, true
	case "address":
		return q.address, true
	case "revision":
		return q.revision, true
	case "wait_ms":
		return q.waited.Milliseconds(), true
	case "cold":
		return q.cold, true
	case "error":
		return q.code, true
	case "error.detail":
		return q.fullDetail, true
	case "retry_after":
		if q.retryAfter == 0 {
			return "", true
		}
		return q.retryAfter, true
	}
	return nil, false
}

// MarshalLogObject implements zapcore.ObjectMarshaler for the access log.
func (q *request) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("service", q.service.name)
	if q.instance != "" {
		enc.AddString("instance", q.instance)
		enc.AddString("address", q.address)
	}
	enc.AddInt64("wait_ms", q.waited.Milliseconds())
	enc.AddBool("cold", q.cold)
	if q.code != "" {
		enc.AddString("error", q.code)
	}
	return nil
}
