package caddymodule

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// tracer names who makes the spans.
const tracer = "github.com/caddy-usher/usher"

// traceWait begins the span of a wait in the line, below the span that Caddy's
// `tracing` has put into the request, and returns what ends it. It is nil for
// a request that is not traced.
func (q *request) traceWait() func(error) {
	parent := trace.SpanFromContext(q.ctx)
	if !parent.IsRecording() {
		return nil
	}
	t := parent.TracerProvider().Tracer(tracer)
	ctx, span := t.Start(q.ctx, "usher.wait",
		trace.WithAttributes(attribute.String("usher.service", q.service.name), attribute.Bool("usher.cold", q.cold)))
	var cold *coldSpan
	if q.cold {
		cold = q.service.coldTrace.join(ctx, t, span, q.service)
	}
	return func(err error) {
		outcome := outcomeOf(err)
		if cold != nil {
			q.service.coldTrace.leave(cold, outcome)
		}
		span.SetAttributes(attribute.String("usher.outcome", outcome))
		if err == nil {
			span.SetAttributes(attribute.String("usher.instance", q.reservation.Instance().ID))
		} else if !errors.Is(err, errWaitingPage) {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// outcomeOf names what became of a wait, as the metrics do.
func outcomeOf(err error) string {
	if r, ok := errors.AsType[*scaler.Refusal](err); ok {
		return refusalCodes[r.Kind]
	}
	switch {
	case err == nil:
		return outcomeGranted
	case errors.Is(err, reserver.ErrQueueFull):
		return codeQueueFull
	case errors.Is(err, errWaitTimeout):
		return codeWaitTimeout
	case errors.Is(err, reserver.ErrAsleep):
		return codeAsleep
	case errors.Is(err, errWaitingPage):
		return codeWaitingPage
	}
	return outcomeClientGone
}

// coldTrace knows the span of the cold start in progress. It is made for the
// first traced request that waits for the start, below the span of its wait,
// and every other one is linked to it. It ends with the start, or without it
// when none of them waits any more; one that goes on waiting in its browser
// does, and has no span meanwhile.
type coldTrace struct {
	mu      sync.Mutex
	current *coldSpan
}

type coldSpan struct {
	trace.Span
	ctx     context.Context
	tracer  trace.Tracer
	waiting int  // the traced requests that wait for it
	browser bool // one of them went on in its browser
}

// join lets the span of a wait take part. It returns nil if there is no cold
// start any more to wait for.
func (c *coldTrace) join(ctx context.Context, t trace.Tracer, wait trace.Span, s *service) *coldSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.current != nil:
		wait.AddLink(trace.Link{SpanContext: c.current.SpanContext()})
	case s.reserver.Stats().Open > 0:
		// Its end was told before: an instance is there first.
		return nil
	default:
		c.current = &coldSpan{tracer: t}
		c.current.ctx, c.current.Span = t.Start(ctx, "usher.cold_start", trace.WithAttributes(attribute.String("usher.service", s.name)))
	}
	c.current.waiting++
	return c.current
}

// leave takes a wait out.
func (c *coldTrace) leave(span *coldSpan, outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	span.waiting--
	span.browser = span.browser || outcome == codeWaitingPage
	if span.waiting > 0 || span.browser || span != c.current {
		return
	}
	if outcome == outcomeGranted {
		// An instance that had been ready before is so again.
		outcome = outcomeReady
	} else {
		span.SetStatus(codes.Error, "nobody waits any more: "+outcome)
	}
	c.end(outcome)
}

// finished ends the span with what is known of the start's steps.
func (c *coldTrace) finished(start scaler.ColdStart) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return
	}
	c.current.SetAttributes(attribute.String("usher.instance", start.Instance))
	from := time.Duration(0)
	for _, step := range []struct {
		name string
		to   time.Duration
	}{{"usher.queue", start.Accepted}, {"usher.start", start.Address}, {"usher.probe", start.Ready}} {
		_, span := c.current.tracer.Start(c.current.ctx, step.name, trace.WithTimestamp(start.Asked.Add(from)))
		span.End(trace.WithTimestamp(start.Asked.Add(step.to)))
		from = step.to
	}
	c.end(outcomeReady)
}

// over ends the span of a cold start that came to nothing: the service is in
// this state now.
func (c *coldTrace) over(state scaler.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.current.waiting > 0 {
		// Who still waits is told, and says so.
		return
	}
	c.current.SetStatus(codes.Error, "the service is "+string(state))
	c.end(string(state))
}

// outcomeReady is what became of a cold start that has succeeded.
const outcomeReady = "ready"

// failed takes note of a start that failed. Another may follow.
func (c *coldTrace) failed(f *scaler.Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		c.current.AddEvent("start failed", trace.WithAttributes(
			attribute.String("usher.reason", string(f.Reason)), attribute.String("usher.detail", scaler.Readable(f.Short))))
	}
}

// end ends the span. The lock is held.
func (c *coldTrace) end(outcome string) {
	c.current.SetAttributes(attribute.String("usher.outcome", outcome))
	c.current.End()
	c.current = nil
}
