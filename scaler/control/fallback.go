package control

import (
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Fallback is what becomes of a backend that was put in the place of another one
// and cannot be started.
type Fallback struct {
	// Backend is the one that may fail. As long as another one is the current
	// one the fallback has no effect.
	Backend scaler.Backend

	// For is how long the fallback is at hand, counted from the first start of
	// Backend that has succeeded or failed.
	For time.Duration

	// Take puts the backend of before in its place again. It is called once, in
	// a goroutine of its own, when Backend has failed for good, or as often in a
	// row as makes a service failing. Until it has returned, requests go on
	// waiting.
	Take func(*scaler.Failure)
}

// fallback is a Fallback and how far it has come.
type fallback struct {
	Fallback
	ends  time.Time // zero until the first start has succeeded or failed
	ready bool      // an instance of Backend was ready
}

// SetFallback sets what is done if the starts of a backend fail, in place of what
// was set before. It is called before that backend becomes the current one.
// Without a function Take, nothing is done.
func (l *Loop) SetFallback(f Fallback) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fallback = nil
	if f.Take != nil {
		l.fallback = &fallback{Fallback: f}
	}
}

// Unproven says whether no instance of the current backend was ready yet, while a
// fallback is at hand for it.
func (l *Loop) Unproven() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.fallback
	return f != nil && !f.ready && l.current() != nil && l.current().backend == f.Backend
}

// atHand returns the fallback for the current backend, or nil. The lock is held.
func (l *Loop) atHand(now time.Time) *fallback {
	f := l.fallback
	if f == nil || l.current() == nil || l.current().backend != f.Backend {
		return nil
	}
	if f.ends.IsZero() {
		f.ends = now.Add(f.For)
	}
	if now.After(f.ends) {
		l.fallback = nil
		return nil
	}
	return f
}

// exhausted says whether enough starts have failed. The lock is held.
func (l *Loop) exhausted() bool {
	return l.permanentFailure || int(l.failures) >= l.settings.startAttempts()
}

// fallBack takes the fallback, if there is one for the current backend and enough
// starts have failed. The lock is held.
func (l *Loop) fallBack(now time.Time) {
	f := l.atHand(now)
	if f == nil || l.givesWay || !l.exhausted() {
		return
	}
	failure := l.lastFailure.Failure
	l.fallback = nil
	l.givesWay = l.background(func() {
		l.log().Warn("the new definition cannot be started: the one of before takes its place again",
			slog.String("reason", string(failure.Reason)), slog.Any("error", failure))
		f.Take(failure)
		l.mu.Lock()
		l.givesWay = false
		l.refuse(time.Now())
		l.mu.Unlock()
		l.Trigger()
	})
}
