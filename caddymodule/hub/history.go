package hub

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

const (
	// spansFor is how long numbers of instances are remembered, and spanStep
	// the time within which only the last and the highest are.
	spansFor = time.Hour
	spanStep = 15 * time.Second

	// startsKept is how many cold starts, and how many failed ones, of a
	// service are remembered, and messageMax what is kept of a message.
	startsKept = 8
	messageMax = 2 << 10
)

// History is what happened to one service lately, each list oldest first.
type History struct {
	// Targets is how many instances were wanted, Needed how many the requests
	// inside and waiting needed, Predicted how many were there because of what
	// the policy expected, and Floors the least number by the schedule.
	Targets, Needed, Predicted, Floors []Span

	ColdStarts []ColdStart
	Failures   []StartFailure
}

// Span is what a number of instances was within one span of time, and from then
// on.
type Span struct {
	At         uint32 // seconds of Unix time, a multiple of spanStep
	High, Last uint32
}

// MarshalJSON writes `[<time>, <highest>, <last>]`.
func (t Span) MarshalJSON() ([]byte, error) {
	return json.Marshal([3]uint32{t.At, t.High, t.Last})
}

// ColdStart is a cold start of the history.
type ColdStart struct {
	Time time.Time `json:"time"`
	MS   int64     `json:"ms"`
}

// StartFailure is a failed start of the history.
type StartFailure struct {
	Time    time.Time     `json:"time"`
	Reason  scaler.Reason `json:"reason"`
	Message string        `json:"message"`
}

// history is the history of a service. It is made when something happens for
// the first time, has no timer, and is bounded whatever happens.
type history struct {
	mu   sync.Mutex
	made int // entries ever made: as long as it is the same nothing is new
	History
}

// remember adds e to the history of the service, if it belongs there. The loop
// tells its observer one thing after the other, so only one is made.
func (s *Service) remember(e Entry) {
	if !e.Notable() {
		return
	}
	h := s.history.Load()
	if h == nil {
		h = new(history)
		s.history.Store(h)
	}
	h.add(e)
}

func (h *history) add(e Entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	switch event := e.Event.(type) {
	case control.Decision:
		h.Targets = spanned(h.Targets, e.Time, event.To, event.To)
	case control.ColdStart:
		h.ColdStarts = latest(append(h.ColdStarts, ColdStart{e.Time, event.Ready.Milliseconds()}))
	case control.StartFailure:
		h.Failures = latest(append(h.Failures, StartFailure{e.Time, event.Reason, Cut(event.Error())}))
	}
}

// spanned adds that the number was high at most and is last, at that time.
func spanned(all []Span, at time.Time, high, last int) []Span {
	next := Span{uint32(at.Truncate(spanStep).Unix()), uint32(max(high, last)), uint32(last)}
	// Of what is older, one is needed to know how the hour began.
	from := next.At - uint32(spansFor/time.Second)
	for len(all) > 1 && all[1].At <= from {
		all = slices.Delete(all, 0, 1)
	}
	if k := len(all) - 1; k >= 0 && all[k].At >= next.At {
		all[k].High, all[k].Last = max(all[k].High, next.High), next.Last
		return all
	}
	return append(all, next)
}

// changed adds what is new; of what is as it was, nothing is kept.
func changed(all []Span, at time.Time, high, last int) []Span {
	was := Span{}
	if n := len(all); n > 0 {
		was = all[n-1]
	}
	if uint32(last) == was.Last && uint32(high) <= was.Last {
		return all
	}
	return spanned(all, at, high, last)
}

// foresaw adds what the policy said. A service of which there is nothing to draw
// has no history.
func (s *Service) foresaw(at time.Time, o control.Outlook) {
	h := s.history.Load()
	if h == nil {
		if o.NeededPeak+o.Predicted+o.Floor == 0 {
			return
		}
		h = new(history)
		s.history.Store(h)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made++
	h.Needed = changed(h.Needed, o.NeededSince, o.NeededPeak, o.Needed)
	h.Predicted = changed(h.Predicted, at, o.Predicted, o.Predicted)
	h.Floors = changed(h.Floors, at, o.Floor, o.Floor)
}

// latest is all without what is too much of it, at the front.
func latest[T any](all []T) []T {
	return slices.Delete(all, 0, max(0, len(all)-startsKept))
}

// Cut keeps the first 2 KiB of a message, and says so.
func Cut(message string) string {
	if len(message) <= messageMax {
		return message
	}
	return strings.ToValidUTF8(message[:messageMax], "") + " ..."
}

// History returns what happened to the service lately.
func (s *Service) History() History {
	v := History{[]Span{}, []Span{}, []Span{}, []Span{}, []ColdStart{}, []StartFailure{}}
	if h := s.history.Load(); h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		v.Targets = append(v.Targets, h.Targets...)
		v.Needed = append(v.Needed, h.Needed...)
		v.Predicted = append(v.Predicted, h.Predicted...)
		v.Floors = append(v.Floors, h.Floors...)
		v.ColdStarts = append(v.ColdStarts, h.ColdStarts...)
		v.Failures = append(v.Failures, h.Failures...)
	}
	// What changes between two decisions is seen at the next one, and here.
	needed := s.Loop.Status().Needed
	v.Needed = changed(v.Needed, time.Now(), needed, needed)
	return v
}

// Happened counts the entries that the history ever had: as long as the number
// is the same, nothing is new.
func (s *Service) Happened() int {
	h := s.history.Load()
	if h == nil {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.made
}
