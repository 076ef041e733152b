package control

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// recorder is an observer that writes everything down.
type recorder struct {
	mu     sync.Mutex
	events []string
	views  []Outlook
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Observe(e Event) {
	switch e := e.(type) {
	case Decision:
		r.add("target %d->%d: %s", e.From, e.To, e.Reason)
	case StateChange:
		r.add("%s->%s", e.From, e.To)
	case InstanceStatus:
		r.add("%s %s", e.ID, e.State)
	case StartFailure:
		if e.Together {
			r.add("failed together %s", e.Short)
			return
		}
		r.add("failed %s", e.Short)
	case ColdStart:
		r.add("cold %v", e.Ready)
	case Outlook:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.views = append(r.views, e)
	}
}

// outlooks returns those that were told so far.
func (r *recorder) outlooks() []Outlook {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.views)
}

// count returns how many events begin with prefix.
func (r *recorder) count(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if strings.HasPrefix(e, prefix) {
			n++
		}
	}
	return n
}
