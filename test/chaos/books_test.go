package chaos

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// stay is one request inside one instance, by the journal.
type stay struct {
	instance string
	from     time.Time
	to       time.Time // zero: it never ended, because the process did
}

// logged is what the access log says about one request.
type logged struct {
	TS       float64 `json:"ts"`
	Duration float64 `json:"duration"`
	Status   int     `json:"status"`
	Request  struct {
		Headers map[string][]string `json:"headers"`
	} `json:"request"`
	Usher struct {
		Service  string `json:"service"`
		Instance string `json:"instance"`
		WaitMS   int64  `json:"wait_ms"`
		Error    string `json:"error"`
	} `json:"usher"`
	line string
}

func (l *logged) arrival() time.Time {
	return time.Unix(0, int64((l.TS-l.Duration)*1e9))
}

// granted is about when it got its slot, if it was not tried again.
func (l *logged) granted() time.Time {
	return l.arrival().Add(time.Duration(l.Usher.WaitMS) * time.Millisecond)
}

// books are all that was written down, by request.
type books struct {
	t       *testing.T
	c       *harness.Caddy
	town    *town
	events  *events
	records []*record
	bySeq   map[string]*record
	stays   map[string][]stay   // by seq, in order
	inside  map[string][]string // seqs by instance, in the order of their coming
	journal harness.Journal
	access  map[string][]*logged
	found   int
}

// findingsTold is how many findings are told in full; more seldom help.
const findingsTold = 6

func openBooks(t *testing.T, c *harness.Caddy, w *town, e *events, l *ledger) *books {
	b := &books{
		t: t, c: c, town: w, events: e, records: l.records, journal: c.Journal(),
		bySeq: make(map[string]*record), stays: make(map[string][]stay), inside: make(map[string][]string),
		access: make(map[string][]*logged),
	}
	for _, r := range b.records {
		b.bySeq[r.seq] = r
	}
	deaf := make(map[string]bool)
	for _, entry := range b.journal {
		at := time.Unix(0, entry.Time)
		switch entry.Event {
		case "begin":
			b.stays[entry.Seq] = append(b.stays[entry.Seq], stay{instance: entry.Instance, from: at})
			b.inside[entry.Instance] = append(b.inside[entry.Instance], entry.Seq)
		case "end":
			for k := range b.stays[entry.Seq] {
				if s := &b.stays[entry.Seq][k]; s.instance == entry.Instance && s.to.IsZero() {
					s.to = at
					break
				}
			}
		case "deaf":
			deaf[entry.Instance] = true
		}
	}
	for instance, at := range e.deafened {
		if !deaf[instance] {
			// The signal came before the process knew what to do with it.
			e.killed[instance] = at
		}
	}
	b.readAccessLog()
	return b
}

func (b *books) readAccessLog() {
	file, err := os.Open(b.c.Path("access.log"))
	if err != nil {
		b.t.Error(err)
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		l := &logged{line: lines.Text()}
		// A Caddy that was killed may have left half a line.
		if json.Unmarshal(lines.Bytes(), l) != nil {
			continue
		}
		if seq := l.Request.Headers["X-Seq"]; len(seq) == 1 {
			b.access[seq[0]] = append(b.access[seq[0]], l)
		}
	}
}

// finding reports something that the contract does not allow.
func (b *books) finding(r *record, format string, args ...any) {
	b.t.Helper()
	if b.found++; b.found > findingsTold {
		b.t.Errorf(format+" (%s)", append(args, r.seq)...)
		return
	}
	b.t.Errorf(format+"\n  %s\n  done about then:\n%s%s", append(args, r, b.events.around(r.began, r.over), b.evidence(r))...)
}

// evidence is what the books say about a request.
func (b *books) evidence(r *record) string {
	var w strings.Builder
	instances := make(map[string]bool)
	for _, s := range b.stays[r.seq] {
		fmt.Fprintf(&w, "  journal: inside instance %s from %s to %s\n", s.instance, s.from.Format(clock), s.to.Format(clock))
		instances[s.instance] = true
	}
	for _, l := range b.access[r.seq] {
		fmt.Fprintf(&w, "  access log: status %d, instance %s, waited %d ms, took %.3f s, error %q, until %s\n",
			l.Status, l.Usher.Instance, l.Usher.WaitMS, l.Duration, l.Usher.Error, time.Unix(0, int64(l.TS*1e9)).Format(clock))
		instances[l.Usher.Instance] = true
	}
	fmt.Fprintf(&w, "  journal of its instances, and starts and ends of the service:\n")
	n := 0
	for _, e := range b.journal {
		at := time.Unix(0, e.Time)
		of := instances[e.Instance] || e.Service == r.service && e.Event != "begin" && e.Event != "end"
		if !of || at.Before(r.began.Add(-500*time.Millisecond)) || at.After(r.over.Add(300*time.Millisecond)) {
			continue
		}
		if n++; n > 40 {
			fmt.Fprintf(&w, "    ...\n")
			break
		}
		fmt.Fprintf(&w, "    %s %s %s %s %s inside=%d status=%d\n", at.Format(clock), e.Instance, e.Event, e.Seq, e.Path, e.Inside, e.Status)
	}
	fmt.Fprintf(&w, "  Caddy's log:\n")
	n = 0
	for _, e := range b.c.Log() {
		ts, _ := e.Fields["ts"].(float64)
		at := time.Unix(0, int64(ts*1e9))
		service, _ := e.Fields["service"].(string)
		if at.Before(r.began.Add(-time.Second)) || at.After(r.over.Add(300*time.Millisecond)) || service != "" && service != r.service {
			continue
		}
		if service == "" && e.Level == "info" && strings.HasPrefix(e.Logger, "admin") {
			continue
		}
		if n++; n > 60 {
			fmt.Fprintf(&w, "    ...\n")
			break
		}
		fmt.Fprintf(&w, "    %s %s %s: %s %v\n", at.Format(clock), e.Level, e.Logger, e.Msg, brief(e.Fields))
	}
	return w.String()
}

// brief is a log entry's fields without what is said already.
func brief(fields map[string]any) string {
	var all []string
	for k, v := range fields {
		switch k {
		case "level", "logger", "msg", "ts", "service", "request", "resp_headers":
		default:
			all = append(all, fmt.Sprintf("%s=%.200v", k, v))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// tally sums the outcomes up.
func (b *books) tally() string {
	counts := make(map[string]int)
	for _, r := range b.records {
		counts[b.outcome(r)]++
	}
	var all []string
	for what, n := range counts {
		all = append(all, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(all)
	return fmt.Sprintf("%d requests: %s", len(b.records), strings.Join(all, ", "))
}

func (b *books) outcome(r *record) string {
	switch {
	case r.left:
		return "left"
	case r.fine():
		return "served"
	case r.code != "":
		return r.code
	case r.status == 0:
		return "no answer"
	case r.err != nil:
		return "broken off"
	}
	return fmt.Sprint(r.status)
}
