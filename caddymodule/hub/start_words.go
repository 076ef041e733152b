package hub

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler/control"
)

// StartSummary tells how the starts of a service go.
type StartSummary struct {
	Failed    int        `json:"failed"`               // in a row
	Attempts  int        `json:"attempts"`             // after so many the service is failing
	Since     *time.Time `json:"since,omitempty"`      // when the one in progress began
	Waits     string     `json:"waits,omitempty"`      // what the next one waits for, if for a place of start_limit
	NextAt    *time.Time `json:"next_at,omitempty"`    // when the next may be made
	Known     string     `json:"known,omitempty"`      // what is known of why it is not ready yet
	Problem   string     `json:"problem,omitempty"`    // the same, once it takes longer than usual or shows a mistake
	LastError string     `json:"last_error,omitempty"` // why the latest one failed
}

// summarizeStart returns nil if there is nothing to tell. Messages may be lines
// of output; keep bounds them.
func summarizeStart(st control.StartStatus, keep func(string) string) *StartSummary {
	if st.Failed == 0 && st.Since.IsZero() && st.Waits == "" {
		return nil
	}
	sum := &StartSummary{Failed: st.Failed, Attempts: st.Attempts, Waits: st.Waits}
	if !st.Since.IsZero() {
		sum.Since = &st.Since
	}
	if !st.Next.IsZero() {
		sum.NextAt = &st.Next
	}
	if st.Known != nil {
		sum.Known = keep(st.Known.Error())
	}
	if st.Problem != nil {
		sum.Problem = keep(st.Problem.Error())
	}
	if st.Failure != nil {
		sum.LastError = keep(st.Failure.Error())
	}
	return sum
}

// KnownInWords is all that is known of the start in progress.
func (s *StartSummary) KnownInWords() string {
	if s == nil {
		return ""
	}
	return cmp.Or(s.Problem, s.Known)
}

// InWords says it of a service in a state, in one sentence. It is empty for nil.
func (s *StartSummary) InWords(state control.State, now time.Time) string {
	if s == nil {
		return ""
	}
	var parts []string
	if s.Since != nil {
		parts = append(parts, "in progress for "+Short(now.Sub(*s.Since)))
	}
	if s.Waits != "" {
		parts = append(parts, s.Waits)
	}
	switch {
	case s.Failed > 0 && (state == control.Failing || s.Failed >= s.Attempts):
		parts = append(parts, Several(s.Failed, "attempt")+" failed")
	case s.Failed > 0:
		parts = append(parts, fmt.Sprintf("%s failed, and after %d the service is failing", Several(s.Failed, "attempt"), s.Attempts))
	}
	if s.NextAt != nil {
		if left := s.NextAt.Sub(now); left > 0 {
			parts = append(parts, "the next one in "+Short(left)+" at the earliest")
		}
	}
	return strings.Join(parts, "; ")
}
