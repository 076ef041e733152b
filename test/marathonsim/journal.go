package marathonsim

import (
	"sync"
	"time"
)

// An Entry is one line of the simulator's journal: what happened, in order.
type Entry struct {
	Seq  int       `json:"seq"`
	Time time.Time `json:"time"` // of the simulator's clock
	Kind string    `json:"kind"` // instance, task, launch, process, kill, deployment, event, request, fault, ...
	App  string    `json:"app"`
	ID   string    `json:"id"`
	Text string    `json:"text"`
}

// maxJournal bounds the journal; a soak writes some hundred lines a second.
const maxJournal = 200_000

type journal struct {
	mu      sync.Mutex
	seq     int
	entries []Entry
	print   func(Entry)
}

func (j *journal) add(e Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e.Seq = j.seq
	if len(j.entries) >= maxJournal {
		j.entries = append(j.entries[:0], j.entries[maxJournal/2:]...)
	}
	j.entries = append(j.entries, e)
	if j.print != nil {
		j.print(e)
	}
}

// since returns the entries after the given number.
func (j *journal) since(seq int) []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Entry
	for _, e := range j.entries {
		if e.Seq > seq {
			out = append(out, e)
		}
	}
	return out
}
