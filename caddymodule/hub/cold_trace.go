package hub

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// ColdTrace knows the span of the cold start in progress. It is made for the
// first traced request that waits for the start, below the span of its wait,
// and every other one is linked to it. It ends with the start, or without it
// when none of them waits any more; one that goes on waiting in its browser
// does, and has no span meanwhile.
type ColdTrace struct {
	mu      sync.Mutex
	current *ColdSpan
}

// ColdSpan is the span of one cold start.
type ColdSpan struct {
	trace.Span
	ctx     context.Context
	tracer  trace.Tracer
	waiting int  // the traced requests that wait for it
	browser bool // one of them went on in its browser
}

// Join lets the span of a wait take part. It returns nil if there is no cold
// start any more to wait for.
func (c *ColdTrace) Join(ctx context.Context, t trace.Tracer, wait trace.Span, s *Service) *ColdSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.current != nil:
		wait.AddLink(trace.Link{SpanContext: c.current.SpanContext()})
	case s.Reserver.Stats().Open > 0:
		// Its end was told before: an instance is there first.
		return nil
	default:
		c.current = &ColdSpan{tracer: t}
		c.current.ctx, c.current.Span = t.Start(ctx, "usher.cold_start", trace.WithAttributes(attribute.String("usher.service", s.Name)))
	}
	c.current.waiting++
	return c.current
}

// Leave takes a wait out. browser says that it goes on in a browser, with the
// waiting page.
func (c *ColdTrace) Leave(span *ColdSpan, outcome string, browser bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	span.waiting--
	span.browser = span.browser || browser
	if span.waiting > 0 || span.browser || span != c.current {
		return
	}
	if outcome == OutcomeGranted {
		// An instance that had been ready before is so again.
		outcome = outcomeReady
	} else {
		span.SetStatus(codes.Error, "no request waits any more: "+outcome)
	}
	c.end(outcome)
}

// follow brings what happens to the service into the span.
func (c *ColdTrace) follow(event control.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return
	}
	switch e := event.(type) {
	case control.ColdStart:
		c.finish(e)
	case control.StartFailure:
		// Another may follow.
		c.current.AddEvent("start failed", trace.WithAttributes(
			attribute.String("usher.reason", string(e.Reason)), attribute.String("usher.detail", scaler.Readable(e.Short))))
	case control.StateChange:
		if e.To == control.Waking || c.current.waiting > 0 {
			// A request that still waits is told, and says so.
			return
		}
		// The cold start came to nothing.
		c.current.SetStatus(codes.Error, "the service is "+string(e.To))
		c.end(string(e.To))
	}
}

// finish ends the span with what is known of the start's steps. The lock is
// held.
func (c *ColdTrace) finish(start control.ColdStart) {
	c.current.SetAttributes(attribute.String("usher.instance", start.Instance))
	from := time.Duration(0)
	for _, step := range []struct {
		name string
		to   time.Duration
	}{{"usher.schedule", start.Accepted}, {"usher.start", start.Address}, {"usher.probe", start.Ready}} {
		_, span := c.current.tracer.Start(c.current.ctx, step.name, trace.WithTimestamp(start.Asked.Add(from)))
		span.End(trace.WithTimestamp(start.Asked.Add(step.to)))
		from = step.to
	}
	c.end(outcomeReady)
}

// outcomeReady is what became of a cold start that has succeeded.
const outcomeReady = "ready"

// end ends the span. The lock is held.
func (c *ColdTrace) end(outcome string) {
	c.current.SetAttributes(attribute.String("usher.outcome", outcome))
	c.current.End()
	c.current = nil
}
