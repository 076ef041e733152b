package caddymodule

import (
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/control"
)

// tracer is the name of the instrumentation that makes the spans.
const tracer = "github.com/caddy-usher/usher"

// traceWait begins the span of a wait in the queue, below the span that Caddy's
// `tracing` has put into the request, and returns what ends it. It is nil for
// a request that is not traced.
func (q *request) traceWait() func(error) {
	parent := trace.SpanFromContext(q.ctx)
	if !parent.IsRecording() {
		return nil
	}
	t := parent.TracerProvider().Tracer(tracer)
	ctx, span := t.Start(q.ctx, "usher.wait",
		trace.WithAttributes(attribute.String("usher.service", q.service.Name), attribute.Bool("usher.cold", q.cold)))
	var cold *hub.ColdSpan
	if q.cold {
		cold = q.service.ColdTrace.Join(ctx, t, span, q.service)
	}
	return func(err error) {
		outcome := outcomeOf(err)
		if cold != nil {
			q.service.ColdTrace.Leave(cold, outcome, outcome == codeWaitingPage)
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
	if r, ok := errors.AsType[*control.Refusal](err); ok {
		return refusalCodes[r.Kind]
	}
	switch {
	case err == nil:
		return hub.OutcomeGranted
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
