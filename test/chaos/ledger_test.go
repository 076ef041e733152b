package chaos

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// A record is what is known of one request. It is complete once over is set.
type record struct {
	seq     string
	service string
	what    string
	method  string
	quiet   bool // it does not wake the service
	h2      bool

	began, over time.Time // over: it had its outcome, or the client left
	left        bool      // the client went away before the outcome

	status   int // 0: not one byte of an answer
	code     string
	instance string
	retry    string // Retry-After
	store    string // Cache-Control
	body     string // of an error
	wrong    string // what is wrong with what came
	err      error  // how the transport failed
}

func (r *record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s: %s, %s to %s (%s)", r.seq, r.method, r.service, r.what,
		r.began.Format(clock), r.over.Format(clock), r.over.Sub(r.began).Round(time.Millisecond))
	if r.quiet {
		b.WriteString(", quiet")
	}
	if r.h2 {
		b.WriteString(", HTTP/2")
	}
	if r.left {
		b.WriteString(", the client left")
	}
	fmt.Fprintf(&b, ", status %d", r.status)
	if r.code != "" {
		fmt.Fprintf(&b, " %s", r.code)
	}
	if r.instance != "" {
		fmt.Fprintf(&b, ", instance %s", r.instance)
	}
	if r.err != nil {
		fmt.Fprintf(&b, ", error %v", r.err)
	}
	if r.wrong != "" {
		fmt.Fprintf(&b, ", wrong: %s", r.wrong)
	}
	if r.body != "" {
		fmt.Fprintf(&b, ", body %s", strings.TrimSpace(r.body))
	}
	return b.String()
}

// clock is how times are printed.
const clock = "15:04:05.000"

// fine tells whether the request was served, whole.
func (r *record) fine() bool {
	return !r.left && r.err == nil && r.wrong == "" && (r.status == 200 || r.status == 101)
}

// overlaps tells whether the request was under way in some moment of a time.
func (r *record) overlaps(from, to time.Time) bool {
	return !r.began.After(to) && !r.over.Before(from)
}

// A ledger has the record of every request.
type ledger struct {
	mu      sync.Mutex
	records []*record
}

func (l *ledger) enter(r *record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
}

// A span is a time in which something was the case. An open end is zero.
type span struct{ from, to time.Time }

func (s span) touches(from, to time.Time) bool {
	return !s.from.After(to) && (s.to.IsZero() || !s.to.Before(from))
}

func (s span) covers(from, to time.Time) bool {
	return !s.from.After(from) && (s.to.IsZero() || !s.to.Before(to))
}

// events are what was done: what the outcomes are judged by. Only the
// goroutine of the test writes them, and it reads them when all is over.
type events struct {
	killed     map[string]time.Time // instances, by when they were ended by force
	deafened   map[string]time.Time // instances, by when they were told to refuse connections
	caddy      []span               // Caddy did not serve, or not everybody
	reloading  []span
	shortage   []span
	suspended  map[string][]span
	suspending map[string][]span // the same, with the calls
	badStarts  map[string][]time.Time
	troubled   map[string][]span // requests may have been tried again
	done       []string          // what was done when, for reports
	doneAt     []time.Time
}

func newEvents() *events {
	return &events{
		killed: make(map[string]time.Time), deafened: make(map[string]time.Time), suspended: make(map[string][]span), suspending: make(map[string][]span),
		badStarts: make(map[string][]time.Time), troubled: make(map[string][]span),
	}
}

func (e *events) note(format string, args ...any) {
	e.done = append(e.done, fmt.Sprintf(format, args...))
	e.doneAt = append(e.doneAt, time.Now())
}

// around returns what was done about a time.
func (e *events) around(from, to time.Time) string {
	var b strings.Builder
	for k, at := range e.doneAt {
		if at.After(from.Add(-3*time.Second)) && at.Before(to.Add(time.Second)) {
			fmt.Fprintf(&b, "    %s %s\n", at.Format(clock), e.done[k])
		}
	}
	return b.String()
}

// closeLast ends the last span if it lasts.
func closeLast(spans []span, at time.Time) {
	if n := len(spans); n > 0 && spans[n-1].to.IsZero() {
		spans[n-1].to = at
	}
}

func touched(spans []span, from, to time.Time) bool {
	for _, s := range spans {
		if s.touches(from, to) {
			return true
		}
	}
	return false
}
