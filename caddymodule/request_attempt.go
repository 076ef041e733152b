package caddymodule

import (
	"context"
	"errors"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
)

// attempt is one attempt to send a request to an instance. What the transport
// reports is set from its goroutines; the rest belongs to the request's own.
type attempt struct {
	instance *reserver.Instance
	ctx      context.Context // the client's; it also ends when the instance is gone
	cancel   context.CancelCauseFunc
	upstream *reverseproxy.Upstream // what the proxy was given; nil before

	outcome  outcome
	err      error // why nothing can be sent: of unsendable and brokenOff
	direct   bool  // the transport asked for a connection to the instance itself
	broke    bool  // of lost: the connection broke
	approved bool  // the retry rules allow another attempt

	sending   atomic.Bool // the transport is at work
	tried     atomic.Bool // it looked for a connection
	connected atomic.Bool
	wrote     atomic.Bool                // the header, at least, may have left
	withheld  atomic.Bool                // nothing was written to a connection that may lead elsewhere
	unleased  atomic.Bool                // nothing was written, because this Caddy may send none
	dial      atomic.Pointer[dialResult] // of the last address that was dialed for it
}

// dialResult is how dialling one address ended.
type dialResult struct{ err error }

// outcome is how an attempt ended.
type outcome uint8

const (
	unsent     outcome = iota // the transport was not asked to send anything
	underWay                  // it is at work, or panicked
	answered                  // the instance sent the header of a final response
	lost                      // the instance may have seen the request and did not answer
	refused                   // no connection to the instance could be made
	withheld                  // the connection may have led elsewhere: nothing was written
	unleased                  // this Caddy may not send requests now: nothing was written
	unwritten                 // the connection or the instance ended before anything was written
	brokenOff                 // the handshake of the connection broke off
	unsendable                // nothing can be sent, and the instance is not the reason
	rejected                  // the transport does not send this very request
)

// seen says whether the instance may have seen something of the request.
func (o outcome) seen() bool { return o == answered || o == lost || o == underWay }

// firstAttempt is what a request needs once it has a slot, and not while it
// waits for one.
type firstAttempt struct {
	attempt
	trace httptrace.ClientTrace
}

// begin begins an attempt on an instance.
func (q *request) begin(i *reserver.Instance) {
	var a *attempt
	if before := q.attempt.Load(); before != nil {
		before.cancel(nil)
		a = new(attempt)
	} else {
		first := new(firstAttempt)
		a, q.trace = &first.attempt, &first.trace
	}
	a.instance = i
	a.ctx, a.cancel = context.WithCancelCause(q.ctx)
	q.attempt.Store(a)
	// An instance can go between the grant and this moment.
	if g := q.gone.Load(); g != nil && g.instance == i {
		a.cancel(g.cause)
	}
}

// goneInstance is an instance that is gone while a request was on it.
type goneInstance struct {
	instance *reserver.Instance
	cause    error
}

// Interrupt implements reserver.Interrupter: it ends the attempt on that
// instance. The request itself may go to another one.
func (q *request) Interrupt(i *reserver.Instance, cause error) {
	q.gone.Store(&goneInstance{i, cause})
	if a := q.attempt.Load(); a != nil && a.instance == i {
		a.cancel(cause)
	}
}

// interrupted returns the cause with which Usher ended the attempt, or nil.
func (q *request) interrupted() error {
	a := q.attempt.Load()
	if a == nil || q.ctx.Err() != nil {
		return nil
	}
	if cause := context.Cause(a.ctx); errors.Is(cause, control.ErrGone) {
		return cause
	}
	return nil
}

// traced sets up what the transport reports. Handlers in between may send
// requests of their own with the same context, to authorize this one, say:
// what their transports report is none of the attempt's.
func (q *request) traced() *httptrace.ClientTrace {
	if q.trace.GetConn != nil {
		// Of a side of a split that could not serve: the transport may still look at it.
		q.trace = new(httptrace.ClientTrace)
	}
	*q.trace = httptrace.ClientTrace{
		GetConn: func(addr string) {
			if a := q.attempt.Load(); a.sending.Load() {
				a.tried.Store(true)
				a.direct = q.guard != nil && q.toInstance(addr)
			}
		},
		GotConn: q.gotConn,
		WroteHeaders: func() {
			if a := q.attempt.Load(); a.sending.Load() {
				a.wrote.Store(true)
			}
		},
	}
	return q.trace
}

// outcome judges the instance by the last attempt.
func (q *request) outcome() reserver.Outcome {
	a := q.attempt.Load()
	if a == nil {
		return reserver.Neutral
	}
	switch a.outcome {
	case withheld:
		return reserver.Suspected
	case answered:
		return reserver.Answered
	case unsent, underWay, unleased, brokenOff, unsendable, rejected:
		return reserver.Neutral
	}
	switch {
	case q.ctx.Err() != nil, q.interrupted() != nil, q.body.failed():
		return reserver.Neutral
	case a.outcome == refused:
		return reserver.Refused
	}
	return reserver.Failed
}

// maybeSeen says whether the instance may have seen something of the last
// attempt.
func (q *request) maybeSeen() bool {
	a := q.attempt.Load()
	return a != nil && a.outcome.seen()
}

// errSeen ends a request that an instance may have seen and that no rule
// allows to repeat.
var errSeen = errors.New("an instance may have seen the request, and the retry rules do not allow to repeat it")
