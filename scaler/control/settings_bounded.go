package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// bounded returns s, or a copy with the nearest values within the bounds.
func (s *Settings) bounded() *Settings {
	b := *s
	b.Max = clamp(s.Max, 1, scaler.MaxInstances)
	b.Min = clamp(s.Min, 0, b.Max)
	b.Concurrency = clamp(s.Concurrency, 0, scaler.MaxConcurrency)
	b.IdleTimeout = clampDuration(s.IdleTimeout)
	b.StartTimeout = max(clampDuration(s.StartTimeout), scaler.MinDuration)
	b.DrainTimeout = clampDuration(s.DrainTimeout)
	b.StopTimeout = clampDuration(s.StopTimeout)
	b.Check.Interval = clampDuration(s.Check.Interval)
	b.Check.Timeout = clampDuration(s.Check.Timeout)
	if b.Min == s.Min && b.Max == s.Max && b.Concurrency == s.Concurrency && b.IdleTimeout == s.IdleTimeout &&
		b.StartTimeout == s.StartTimeout && b.DrainTimeout == s.DrainTimeout && b.StopTimeout == s.StopTimeout &&
		b.Check.Interval == s.Check.Interval && b.Check.Timeout == s.Check.Timeout {
		// Services with equal settings go on sharing them.
		return s
	}
	return &b
}

func clamp[T int | time.Duration | float64](v, least, most T) T { return max(least, min(v, most)) }

// clampDuration returns the nearest duration within the bounds. 0 stays 0, and
// so does what is below it.
func clampDuration(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return clamp(d, scaler.MinDuration, scaler.MaxDuration)
}
