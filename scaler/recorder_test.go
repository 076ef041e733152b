package scaler

import (
	"fmt"
	"strings"
	"sync"
)

// recorder is an observer that writes everything down.
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Decided(d Decision)               { r.add("target %d->%d: %s", d.From, d.To, d.Reason) }
func (r *recorder) StateChanged(from, to State)      { r.add("%s->%s", from, to) }
func (r *recorder) InstanceChanged(i InstanceStatus) { r.add("%s %s", i.ID, i.State) }
func (r *recorder) StartFailed(f *Failure)           { r.add("failed %s", f.Short) }
func (r *recorder) ColdStarted(c ColdStart)          { r.add("cold %v", c.Ready) }
func (r *recorder) PlatformUp(up bool, _ *Failure)   { r.add("up %v", up) }

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
