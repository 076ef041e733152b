package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Wake starts an instance as a request would. A pause after failed starts is
// cut short: the operator may have fixed the cause. A service
// that is suspended stays so.
func (l *Loop) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.suspended != nil {
		return
	}
	l.asleep = false
	l.startRequested = true
	l.backoffUntil = time.Time{}
	l.refuse(time.Now())
	l.reserver.ResetIdle()
	if r := l.current(); r != nil {
		if h, ok := r.scaler.(scaler.BackoffSkipper); ok {
			// Without the lock: a Scaler may report with its own lock held.
			l.background(h.SkipBackoff)
		}
	}
	l.Trigger()
}

// Sleep drains and stops all instances until the next request. A waiting
// request counts as such. If services that are awake need this one, it does
// nothing and returns their names.
func (l *Loop) Sleep() (neededBy []string) {
	l.mu.Lock()
	// One that begins to need it from here on wakes it with the next decision.
	if neededBy = l.keepersNamed(); neededBy != nil {
		l.mu.Unlock()
		return neededBy
	}
	l.asleep = true
	l.startRequested = false
	l.reserver.TakeRefusedDemand()
	// From here on requests on instances no longer count as demand.
	tell := l.delayChanges()
	l.drainAll()
	if stats := l.stats(); stats.Demand == 0 {
		l.setTarget(scaler.Advice{Reason: sleepReason}, stats, time.Now())
	}
	tell()
	l.settle()
	l.mu.Unlock()
	l.Trigger()
	return nil
}

// Suspend turns the service off until Resume. Waiting requests get the reason
// at once, requests already on an instance may finish, and then everything is
// stopped.
func (l *Loop) Suspend(reason string) {
	l.mu.Lock()
	l.suspended = &Refusal{Kind: RefusedSuspended, Short: scaler.Readable(reason)}
	l.startRequested = false
	l.refuse(time.Now())
	// Requests after this call find no instance, however busy the loop is.
	tell := l.delayChanges()
	l.drainAll()
	l.setTarget(scaler.Advice{Reason: "suspended"}, l.reserver.Stats(), time.Now())
	tell()
	l.mu.Unlock()
	l.Trigger()
}

// drainAll cordons all instances, to be stopped. The lock is held.
func (l *Loop) drainAll() {
	now := time.Now()
	for _, r := range l.revisions {
		if r.followed() {
			continue // what becomes of them is up to the loop that leads
		}
		for _, i := range r.instances {
			l.drain(i, now)
			if i.asleep = true; i.slots != nil {
				i.slots.Retire(true) // its sessions are over, too
			}
		}
	}
}

// Resume ends a suspension.
func (l *Loop) Resume() {
	l.mu.Lock()
	l.suspended, l.asleep = nil, false
	// Requests that were refused during the suspension are long gone.
	l.reserver.TakeRefusedDemand()
	l.refuse(time.Now())
	l.mu.Unlock()
	l.Trigger()
}

// Exit answers all waiting requests: Caddy exits. Ready instances go on
// serving.
func (l *Loop) Exit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exiting = &Refusal{Kind: RefusedExiting, Short: "the server is shutting down"}
	l.refuse(time.Now())
}

// Retire lets the service finish what it has. Then its local instances are
// stopped, what runs on a remote platform is left as it is, and done is
// called, once, in a goroutine of its own; the loop is closed by then.
func (l *Loop) Retire(done func()) {
	l.mu.Lock()
	l.retired, l.onRetired = true, done
	l.mu.Unlock()
	l.Trigger()
}

// Unretire takes Retire back. It returns false if it is too late.
func (l *Loop) Unretire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired && l.onRetired == nil {
		return false
	}
	l.retired, l.onRetired = false, nil
	l.Trigger()
	return true
}

// StopInstance drains and stops one instance. It returns false if there is no
// such instance.
func (l *Loop) StopInstance(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.revisions {
		if i, ok := r.instances[id]; ok {
			l.condemn(i, time.Now())
			l.Trigger()
			return true
		}
	}
	return false
}
