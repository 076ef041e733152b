package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// DefaultStartAttempts is how many starts in a row may fail, unless the
// settings say otherwise, before a service without a ready instance is failing.
const DefaultStartAttempts = 3

// startAttempts is how many starts in a row may fail.
func (s *Settings) startAttempts() int {
	if s.StartAttempts > 0 {
		return s.StartAttempts
	}
	return DefaultStartAttempts
}

// StartStatus tells how the starts of a service go.
type StartStatus struct {
	// Failed is how many starts in a row have failed, and Attempts after how
	// many the service is failing. Failure is that of the last one. A start
	// that has succeeded ends the row once its instance has been ready for
	// some seconds.
	Failed, Attempts int             `json:",omitzero"`
	Failure          *scaler.Failure `json:",omitzero"`

	// Next is when the next start may be made; zero if that is now.
	Next time.Time `json:",omitzero"`

	// Since is when the oldest start in progress began; zero if there is none.
	Since time.Time `json:",omitzero"`

	// Waits says for what the next start waits: a service that this one needs, or
	// a place of the start budget.
	Waits string `json:",omitzero"`

	// Known is what is known of that start, for operators; nil before it was
	// looked at. Problem is the same, and nil as long as the start takes no
	// longer than a start usually does, or, where none was measured yet, is
	// short and shows no mistake.
	Known, Problem *scaler.Failure `json:",omitzero"`
}

// startStatus describes the starts of the current revision. The lock is held.
func (l *Loop) startStatus(now time.Time) StartStatus {
	st := StartStatus{Failed: int(l.failures), Attempts: l.settings.startAttempts()}
	if l.failures > 0 && l.lastFailure != nil {
		st.Failure = l.lastFailure.Failure
	}
	if l.placeless && l.current() != nil {
		st.Waits = l.budget.words(l.current().platform())
	}
	if l.waitsFor != "" {
		st.Waits = "waits for " + l.waitsFor + ", which it needs"
	}
	if now.Before(l.backoffUntil) {
		st.Next = l.backoffUntil
	}
	if i := l.oldestStart(); i != nil {
		st.Since = i.unreadyFrom
		elapsed := now.Sub(i.unreadyFrom)
		if elapsed >= diagnoseFirst && i.hasReason() {
			st.Known = l.notReady(i, "after "+lasted(elapsed))
		}
		if l.slow(elapsed) || i.mistaken {
			st.Problem = l.notReady(i, "after "+lasted(elapsed))
		}
	}
	return st
}

// hasReason says whether something is known of why i is not ready. The lock is
// held.
func (i *instance) hasReason() bool {
	return i.lastProbe != nil || i.Failure != nil || i.Delay != nil || i.diagnosis != scaler.Diagnosis{}
}

// slow says whether a start that has taken so long takes longer than usual.
// The lock is held.
func (l *Loop) slow(elapsed time.Duration) bool {
	if usual := l.recalled().startMean; usual > 0 {
		return elapsed > usual*3/2+time.Second
	}
	return elapsed >= slowStart
}

// StartTrouble returns why a request that has waited in vain got no instance:
// because starts fail, or because the one in progress does not become ready.
// It returns nil if an instance is ready, or if the start in progress has not
// yet taken longer than a start may.
func (l *Loop) StartTrouble() *scaler.Failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reserver.Stats().Open > 0 {
		return nil
	}
	if a := l.account(); a != nil {
		return a.Unstartable
	}
	st := l.startStatus(time.Now())
	if st.Problem != nil {
		return st.Problem
	}
	if st.Failure != nil {
		return st.Failure
	}
	if l.recalled().startMean > 0 {
		return nil
	}
	// This may be the first start ever: nothing shows how long one takes.
	return st.Known
}

// oldestStart returns the instance of the current revision that has been
// starting for the longest time, or nil. The lock is held.
func (l *Loop) oldestStart() *instance {
	r := l.current()
	if r == nil {
		return nil
	}
	var oldest *instance
	for _, i := range r.instances {
		if i.stage == starting && (oldest == nil || i.unreadyFrom.Before(oldest.unreadyFrom)) {
			oldest = i
		}
	}
	return oldest
}
