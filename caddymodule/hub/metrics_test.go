package hub

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// seriesOf counts the series of a service, what is read from the service itself
// left out, that a registry of
// Caddy's gathers.
func seriesOf(t *testing.T, service string) (n int) {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			switch {
			case m.GetGauge() != nil, strings.HasSuffix(family.GetName(), "_idle_seconds_total"), strings.HasSuffix(family.GetName(), "_avoidable_cold_starts_total"):
				continue
			}
			for _, l := range m.GetLabel() {
				if l.GetName() == "service" && l.GetValue() == service {
					n++
				}
			}
		}
	}
	return n
}

func TestWhatHappensToAServiceThatIsGoneIsNotCounted(t *testing.T) {
	t.Parallel()
	h := newHub()
	s := h.Acquire("gone")
	happens := func() {
		for _, e := range []control.Event{
			control.Decision{Time: time.Now(), To: 1},
			control.ColdStart{Ready: time.Second},
			control.StartFailure{Failure: &scaler.Failure{Reason: scaler.ReasonExec, Short: "exit status 1"}},
		} {
			(*observer)(s).Observe(e)
		}
		s.Outcome(OutcomeGranted, 0)
		s.Outcome("asleep", 0)
	}
	happens()
	if n := seriesOf(t, "gone"); n != 7 {
		t.Errorf("%d series of a service to which all has happened", n)
	}
	h.mu.Lock()
	h.forget(s)
	h.mu.Unlock()
	if happens(); seriesOf(t, "gone") != 0 {
		t.Error("it is still counted")
	}
	if err := s.Loop.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSeriesOfAServiceInANewHubOutliveTheOldOne(t *testing.T) {
	// Not parallel: it is about hubs, of which there is one.
	old, h := newHub(), newHub()
	before := Latest.Swap(h)
	defer Latest.Store(before)
	was, s := old.Acquire("twice"), h.Acquire("twice")
	s.active = true
	s.Outcome(OutcomeGranted, 0)
	forget := func(h *Hub, s *Service) {
		h.mu.Lock()
		h.forget(s)
		h.mu.Unlock()
		if err := s.Loop.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if forget(old, was); seriesOf(t, "twice") != 2 {
		t.Error("the end of the old one took them")
	}
	if forget(h, s); seriesOf(t, "twice") != 0 {
		t.Error("they are still there")
	}
}
