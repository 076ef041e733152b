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
	// targetsFor is how long targets are remembered, and targetStep the
	// time within which only the last and the highest are.
	targetsFor = time.Hour
	targetStep = 15 * time.Second

	// startsKept is how many cold starts, and how many failed ones, of a
	// service are remembered, and messageMax what is kept of a message.
	startsKept = 8
	messageMax = 2 << 10
)

// History is what happened to one service lately, each list oldest first.
type History struct {
	Targets    []TargetSpan
	ColdStarts []ColdStart
	Failures   []StartFailure
}

// TargetSpan is what the target was within one span of time.
type TargetSpan struct {
	At         uint32 // seconds of Unix time, a multiple of targetStep
	High, Last uint32
}

// MarshalJSON writes `[<time>, <highest>, <last>]`.
func (t TargetSpan) MarshalJSON() ([]byte, error) {
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
		h.target(e.Time, event.To)
	case control.ColdStart:
		h.ColdStarts = latest(append(h.ColdStarts, ColdStart{e.Time, event.Ready.Milliseconds()}))
	case control.StartFailure:
		h.Failures = latest(append(h.Failures, StartFailure{e.Time, event.Reason, Cut(event.Error())}))
	}
}

func (h *history) target(at time.Time, n int) {
	span := uint32(at.Truncate(targetStep).Unix())
	// Of what is older, one is needed to know how the hour began.
	from := span - uint32(targetsFor/time.Second)
	for len(h.Targets) > 1 && h.Targets[1].At <= from {
		h.Targets = slices.Delete(h.Targets, 0, 1)
	}
	if k := len(h.Targets) - 1; k >= 0 && h.Targets[k].At == span {
		h.Targets[k].High = max(h.Targets[k].High, uint32(n))
		h.Targets[k].Last = uint32(n)
		return
	}
	h.Targets = append(h.Targets, TargetSpan{span, uint32(n), uint32(n)})
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
	v := History{[]TargetSpan{}, []ColdStart{}, []StartFailure{}}
	if h := s.history.Load(); h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		v.Targets = append(v.Targets, h.Targets...)
		v.ColdStarts = append(v.ColdStarts, h.ColdStarts...)
		v.Failures = append(v.Failures, h.Failures...)
	}
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
