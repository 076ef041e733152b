package cluster

import (
	"math"
	"sync/atomic"
	"time"
)

// Instant is a moment, as both clocks of one Caddy read it, in nanoseconds.
// Instants of different Caddys are never compared.
type Instant struct {
	// Mono is the monotonic clock. It may stand still while the machine is
	// suspended, but never runs ahead, so waits for others are counted on it.
	Mono int64

	// Wall is the wall clock. It may jump. What a Caddy allows itself is over
	// when either clock says so.
	Wall int64
}

// InstantOf returns a moment as both clocks read it. Base has to be the same
// time for all moments of one Caddy, with a monotonic reading, as time.Now
// gives it.
func InstantOf(t, base time.Time) Instant {
	return Instant{Mono: int64(t.Sub(base)), Wall: t.UnixNano()}
}

// Add returns the moment d later.
func (t Instant) Add(d time.Duration) Instant {
	return Instant{Mono: t.Mono + int64(d), Wall: t.Wall + int64(d)}
}

// reached reports whether either clock has reached the end of what a Caddy
// allows itself.
func (t Instant) reached(end Instant) bool { return t.Mono >= end.Mono || t.Wall >= end.Wall }

// until returns how long it is to end, by the clock that gets there first.
func (t Instant) until(end Instant) time.Duration {
	return time.Duration(min(end.Mono-t.Mono, end.Wall-t.Wall))
}

const never = math.MaxInt64

// Lease says until when a Caddy may send requests to instances. The methods
// are safe for concurrent use.
type Lease struct {
	mono, wall atomic.Int64
}

// MayWrite reports whether the first byte of a request may be written now. It
// has to be asked directly before that byte is written, with both clocks read
// then. If it says no, nothing may be written: the request goes back to the
// front of the queue.
func (l *Lease) MayWrite(now Instant) bool {
	return !now.reached(l.end())
}

func (l *Lease) end() Instant { return Instant{Mono: l.mono.Load(), Wall: l.wall.Load()} }

func (l *Lease) set(end Instant) {
	l.mono.Store(end.Mono)
	l.wall.Store(end.Wall)
}
