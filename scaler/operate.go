package scaler

import (
	"time"
)

// Wake starts an instance as a request would. A pause after failed starts is
// cut short: somebody who asks by hand may have mended the cause. A service
// that is suspended stays so.
func (l *Loop) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.suspended != nil {
		return
	}
	l.asleep = false
	l.nudged = true
	l.backoffUntil = time.Time{}
	l.refuse()
	l.reserver.Touch()
	if r := l.current(); r != nil {
		if h, ok := r.scaler.(Hurrier); ok {
			// Without the lock: a Scaler may report with its own lock held.
			l.background(h.Hurry)
		}
	}
	l.Poke()
}

// Sleep drains and stops all instances until the next request. Who waits
// counts as such a request.
func (l *Loop) Sleep() {
	l.mu.Lock()
	l.asleep = true
	l.nudged = false
	l.reserver.Knocked()
	// From here on who is inside no longer counts as demand.
	l.drainAll()
	l.mu.Unlock()
	l.Poke()
}

// Suspend turns the service off: who waits is told the reason at once, who is
// inside may finish, and everything is stopped, until Resume.
func (l *Loop) Suspend(reason string) {
	l.mu.Lock()
	l.suspended = &Refusal{Kind: RefusedSuspended, Short: Readable(reason)}
	l.nudged = false
	l.refuse()
	// Who comes after the word finds no instance, however busy the loop is.
	l.drainAll()
	l.mu.Unlock()
	l.Poke()
}

// drainAll cordons all instances, to be stopped. The lock is held.
func (l *Loop) drainAll() {
	now := time.Now()
	for _, r := range l.revisions {
		for _, i := range r.instances {
			l.drain(i, now)
		}
	}
}

// Resume ends a suspension.
func (l *Loop) Resume() {
	l.mu.Lock()
	l.suspended, l.asleep = nil, false
	// Who was refused while it was suspended is long gone.
	l.reserver.Knocked()
	l.refuse()
	l.mu.Unlock()
	l.Poke()
}

// Exit tells everybody who waits that Caddy exits. Ready instances go on
// serving.
func (l *Loop) Exit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exiting = &Refusal{Kind: RefusedExiting, Short: "the server is shutting down"}
	l.refuse()
}

// Retire lets the service finish what it has. Then its local instances are
// stopped, what runs on a remote platform is left as it is, and done is
// called, once, in a goroutine of its own; the loop is closed by then.
func (l *Loop) Retire(done func()) {
	l.mu.Lock()
	l.retired, l.onRetired = true, done
	l.mu.Unlock()
	l.Poke()
}

// Unretire takes Retire back. It returns false if it is too late.
func (l *Loop) Unretire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired && l.onRetired == nil {
		return false
	}
	l.retired, l.onRetired = false, nil
	l.Poke()
	return true
}

// StopInstance drains and stops one instance. It returns false if there is no
// such instance.
func (l *Loop) StopInstance(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.revisions {
		if i, ok := r.instances[id]; ok {
			i.doomed = true
			l.drain(i, time.Now())
			l.Poke()
			return true
		}
	}
	return false
}
