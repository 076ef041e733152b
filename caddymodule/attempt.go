package caddymodule

import (
	"errors"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/reserver"
)

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
	}
	if q.handler.place.generation.silentDials {
		// It costs more than all the rest: it makes a trace of the network.
		q.trace.ConnectDone = q.connectDone
	}
	return q.with(httptrace.WithClientTrace((*forwardContext)(q), &q.trace))
}

// connectDone is told of a connection that has come about for the request, or
// has not.
func (q *request) connectDone(_, addr string, err error) {
	if err != nil {
		if ownShortage(err) {
			q.attempt.starved.Store(true)
		}
		return
	}
	if d := q.dials.Load(); d != nil {
		d.done(addr)
	}
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
