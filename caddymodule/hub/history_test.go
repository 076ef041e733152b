package hub

import (
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
	s := new(Service)
	begin := time.Date(2026, time.March, 4, 12, 0, 0, 0, time.UTC)
	for k := range 40000 {
		at := begin.Add(time.Duration(k) * time.Second)
		s.remember(Entry{Time: at, Event: control.Decision{To: k % 7}})
		s.remember(Entry{Time: at, Event: control.ColdStart{Ready: time.Second}})
		s.remember(Entry{Time: at, Event: control.StartFailure{Failure: &scaler.Failure{Short: strings.Repeat("ä", messageMax)}}})
	}
	v, kept := s.History(), cap(s.history.Load().Targets)
	most := int(targetsFor/targetStep) + 2
	if len(v.Targets) > most || kept > 4*most || len(v.ColdStarts) != startsKept || len(v.Failures) != startsKept || s.Happened() != 3*40000 {
		t.Errorf("%d targets of %d, %d cold starts, %d failures", len(v.Targets), kept, len(v.ColdStarts), len(v.Failures))
	}
	if n := len(v.Failures[0].Message); n > messageMax+10 {
		t.Errorf("a message has %d bytes", n)
	}
	first, last := v.Targets[0], v.Targets[len(v.Targets)-1]
	if last.High != 6 || last.Last != 39999%7 || last.At-first.At < uint32(targetsFor/time.Second) {
		t.Errorf("%+v to %+v", first, last)
	}
}
