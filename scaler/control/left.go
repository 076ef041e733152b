package control

import (
	"log/slog"
	"slices"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// A container that starts again is another instance at the same address, and so is
// one to which the platform gives the address of one that is gone. It can serve
// before the platform tells of the end of the one before. Requests that were let
// into that one by then are inside the next one, and take up its slots, until
// they end or are interrupted.

// leftPause is how often it is looked whether requests inside an instance that is
// gone have ended.
const leftPause = 20 * time.Millisecond

// besideLeft is how many of so many slots of i are left beside the requests that
// were let into instances that are gone from its address. The lock is held.
func (l *Loop) besideLeft(i *instance, slots int) int {
	if slots == reserver.Unlimited {
		return slots
	}
	for _, s := range l.left {
		if s.Address == i.Address && s.Network == i.Network {
			slots -= s.Stats().InUse
		}
	}
	if slots <= 0 {
		return reserver.NoSlots
	}
	return slots
}

// keepLeft keeps an instance that is gone as long as it has requests inside, and
// interrupts these a moment later. The lock is held.
func (l *Loop) keepLeft(s *reserver.Instance) {
	l.left = append(l.left, s)
	l.background(func() {
		l.awaitEmpty(s)
		if n := s.Interrupt(ErrGone); n > 0 {
			l.log().Info("interrupted requests inside an instance that is gone", slog.String("instance", s.ID), slog.Int("requests", n))
			l.awaitEmpty(s)
		}
		l.mu.Lock()
		l.left = slices.DeleteFunc(l.left, func(o *reserver.Instance) bool { return o == s })
		l.mu.Unlock()
		l.resize(s)
	})
}

// awaitEmpty waits until no request is inside an instance that is gone, but no
// longer than interruptAfter, nor than the loop.
func (l *Loop) awaitEmpty(s *reserver.Instance) {
	end := time.Now().Add(interruptAfter)
	for inside := s.Stats().InUse; inside > 0 && time.Now().Before(end); {
		select {
		case <-l.context().Done():
			return
		case <-time.After(leftPause):
		}
		if n := s.Stats().InUse; n < inside {
			inside = n
			l.resize(s)
		}
	}
}

// resize sets the slots of what is at the address of an instance that is gone.
func (l *Loop) resize(gone *reserver.Instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.slots != nil && i.Address == gone.Address && i.Network == gone.Network {
				i.slots.SetSlots(l.slotsHere(i))
			}
		}
	}
}
