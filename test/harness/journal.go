package harness

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
)

// An Entry is one line of the journal that the instances of a test keep.
type Entry struct {
	Time     int64  `json:"time"` // nanoseconds since 1970
	PID      int    `json:"pid"`
	Service  string `json:"service"`
	Instance string `json:"instance"`
	Mark     string `json:"mark"`  // Caddy.Mark of what has started it; with start
	Event    string `json:"event"` // start, listen, begin, end, deaf, term, fork, exit
	Method   string `json:"method"`
	Path     string `json:"path"`
	Seq      string `json:"seq"`     // X-Seq of the request
	Task     string `json:"task"`    // the id of the task, if it is a stored request
	Attempt  int    `json:"attempt"` // the number of its attempt
	Inside   int    `json:"inside"`  // requests in the instance, this one included
	Status   int    `json:"status"`
}

// A Journal is what the instances of a test wrote, in order.
type Journal []Entry

func (c *Caddy) journalPath() string { return filepath.Join(c.Dir, "journal") }

// Journal reads what the instances wrote so far.
func (c *Caddy) Journal() Journal {
	c.t.Helper()
	data, err := os.ReadFile(c.journalPath())
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	var journal Journal
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // being written
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			c.t.Fatalf("journal: %v: %s", err, line)
		}
		journal = append(journal, e)
	}
	return journal
}

// Of returns the entries of one kind.
func (j Journal) Of(event string) Journal {
	var some Journal
	for _, e := range j {
		if e.Event == event {
			some = append(some, e)
		}
	}
	return some
}

// Starts is how many processes began their life.
func (j Journal) Starts() int { return len(j.Of("start")) }

// MaxInside is the highest number of requests that any one instance had
// inside at once.
func (j Journal) MaxInside() int {
	most := 0
	for _, e := range j {
		most = max(most, e.Inside)
	}
	return most
}

// Seqs returns X-Seq of the requests in the order in which they entered.
func (j Journal) Seqs() []string {
	var seqs []string
	for _, e := range j.Of("begin") {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}
