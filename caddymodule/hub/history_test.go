package hub

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestAServiceThatNothingAsksForHasNoHistory(t *testing.T) {
	t.Parallel()
	h := newHub()
	s := h.Acquire("web")
	t.Cleanup(func() { _ = h.closeAll() })
	if v := s.History(); s.history.Load() != nil || v.Targets == nil || s.Happened() != 0 {
		t.Error("it is kept for a service to which nothing has happened")
	}
	s.Loop.Suspend("moving house")
	if s.history.Load() != nil {
		t.Error("a change of state is kept")
	}
	(*observer)(s).Observe(control.Decision{Time: time.Now(), To: 1})
	if v := s.History(); len(v.Targets) != 1 || s.Happened() != 1 {
		t.Error("nothing is kept of what happened")
	}
}

func TestTheHistoryOfABusyServiceIsBounded(t *testing.T) {
	t.Parallel()
	s := hubbed(t)
	begin := time.Date(2026, time.March, 4, 12, 0, 0, 0, time.UTC)
	for k := range 40000 {
		at := begin.Add(time.Duration(k) * time.Second)
		s.remember(Entry{Time: at, Event: control.Decision{To: k % 7}})
		s.remember(Entry{Time: at, Event: control.ColdStart{Ready: time.Second}})
		s.remember(Entry{Time: at, Event: control.StartFailure{Failure: &scaler.Failure{Short: strings.Repeat("ä", messageMax)}}})
	}
	v, kept := s.History(), cap(s.history.Load().Targets)
	most := int(spansFor/spanStep) + 2
	if len(v.Targets) > most || kept > 4*most || len(v.ColdStarts) != startsKept || len(v.Failures) != startsKept || s.Happened() != 3*40000 {
		t.Errorf("%d targets of %d, %d cold starts, %d failures", len(v.Targets), kept, len(v.ColdStarts), len(v.Failures))
	}
	if n := len(v.Failures[0].Message); n > messageMax+10 {
		t.Errorf("a message has %d bytes", n)
	}
	first, last := v.Targets[0], v.Targets[len(v.Targets)-1]
	if last.High != 6 || last.Last != 39999%7 || last.At-first.At < uint32(spansFor/time.Second) {
		t.Errorf("%+v to %+v", first, last)
	}
}

func TestTheHistoryKeepsWhatWasNeededAndPredicted(t *testing.T) {
	t.Parallel()
	s := hubbed(t)
	at := time.Now().Truncate(spanStep).Add(-10 * time.Minute)
	s.foresaw(at, control.Outlook{NeededSince: at})
	if s.history.Load() != nil {
		t.Error("it is kept for a service of which there is nothing to draw")
	}
	minute := func(n int) time.Time { return at.Add(time.Duration(n) * time.Minute) }
	s.foresaw(minute(1), control.Outlook{NeededSince: minute(1), NeededPeak: 3, Needed: 2})
	s.foresaw(minute(2), control.Outlook{NeededSince: minute(1), NeededPeak: 2, Needed: 2, Predicted: 1})
	// The requests have ended between two decisions.
	s.foresaw(minute(5), control.Outlook{NeededSince: minute(4), NeededPeak: 2, Predicted: 1, Floor: 2})
	span := func(n int, high, last uint32) Span { return Span{uint32(minute(n).Unix()), high, last} }
	v := s.History()
	if want := []Span{span(1, 3, 2), span(4, 2, 0)}; !slices.Equal(v.Needed, want) {
		t.Errorf("needed: %v, want %v", v.Needed, want)
	}
	if want := []Span{span(2, 1, 1)}; !slices.Equal(v.Predicted, want) {
		t.Errorf("predicted: %v, want %v", v.Predicted, want)
	}
	if want := []Span{span(5, 2, 2)}; !slices.Equal(v.Floors, want) {
		t.Errorf("floors: %v, want %v", v.Floors, want)
	}
	for k := range 40000 {
		now := at.Add(time.Duration(k) * time.Second)
		s.foresaw(now, control.Outlook{NeededSince: now, NeededPeak: k % 7, Needed: k % 7, Predicted: k % 5, Floor: k % 3})
	}
	v, most := s.History(), int(spansFor/spanStep)+3
	if len(v.Needed) > most || len(v.Predicted) > most || len(v.Floors) > most {
		t.Errorf("%d, %d and %d spans of an hour", len(v.Needed), len(v.Predicted), len(v.Floors))
	}
}

// hubbed is a service of a hub of its own.
func hubbed(t *testing.T) *Service {
	h := newHub()
	t.Cleanup(func() { _ = h.closeAll() })
	return h.Acquire("web")
}
