package caddymodule

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
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

// chronicle is what happened to one service lately. It is made when
// something happens for the first time, has no timer, and is bounded
// whatever happens: a service that nobody asks for costs nothing.
type chronicle struct {
	mu       sync.Mutex
	entries  int // ever made: as long as it is the same nothing is new
	targets  []targetSpan
	colds    []coldStart
	failures []startFailure
}

// targetSpan is what the target was within one span of time.
type targetSpan struct {
	at         uint32 // seconds of Unix time, a multiple of targetStep
	high, last uint32
}

// MarshalJSON writes `[<time>, <highest>, <last>]`.
func (t targetSpan) MarshalJSON() ([]byte, error) {
	return json.Marshal([3]uint32{t.at, t.high, t.last})
}

type coldStart struct {
	Time time.Time `json:"time"`
	MS   int64     `json:"ms"`
}

type startFailure struct {
	Time    time.Time     `json:"time"`
	Reason  scaler.Reason `json:"reason"`
	Message string        `json:"message"`
}

// chronicled returns the chronicle of the service, which is made if need be.
// Only the observer calls it, who is told one thing after the other.
func (s *service) chronicled() *chronicle {
	c := s.chronicle.Load()
	if c == nil {
		c = new(chronicle)
		s.chronicle.Store(c)
	}
	return c
}

func (c *chronicle) target(at time.Time, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries++
	span := uint32(at.Truncate(targetStep).Unix())
	// Of what is older, one is needed to know how the hour began.
	from := span - uint32(targetsFor/time.Second)
	for len(c.targets) > 1 && c.targets[1].at <= from {
		c.targets = slices.Delete(c.targets, 0, 1)
	}
	if k := len(c.targets) - 1; k >= 0 && c.targets[k].at == span {
		c.targets[k].high = max(c.targets[k].high, uint32(n))
		c.targets[k].last = uint32(n)
		return
	}
	c.targets = append(c.targets, targetSpan{span, uint32(n), uint32(n)})
}

func (c *chronicle) coldStarted(at time.Time, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries++
	c.colds = latest(append(c.colds, coldStart{at, d.Milliseconds()}))
}

func (c *chronicle) failed(at time.Time, f *scaler.Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries++
	c.failures = latest(append(c.failures, startFailure{at, f.Reason, cut(f.Error())}))
}

// latest is all without what is too much of it, at the front.
func latest[T any](all []T) []T {
	return slices.Delete(all, 0, max(0, len(all)-startsKept))
}

// cut keeps the first messageMax bytes, and says so.
func cut(message string) string {
	if len(message) <= messageMax {
		return message
	}
	return strings.ToValidUTF8(message[:messageMax], "") + " ..."
}

// chronicleCopy is what a chronicle had at one moment, oldest first.
type chronicleCopy struct {
	Targets    []targetSpan
	ColdStarts []coldStart
	Failures   []startFailure
}

// copy returns what there is, which for a nil chronicle is nothing.
func (c *chronicle) copy() chronicleCopy {
	v := chronicleCopy{[]targetSpan{}, []coldStart{}, []startFailure{}}
	if c == nil {
		return v
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v.Targets = append(v.Targets, c.targets...)
	v.ColdStarts = append(v.ColdStarts, c.colds...)
	v.Failures = append(v.Failures, c.failures...)
	return v
}

// count returns how many entries were made.
func (c *chronicle) count() int {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries
}

// newsKept is how many of the latest news are remembered.
const newsKept = 100

// news are the latest things that happened, over all services.
type news struct {
	mu    sync.Mutex
	made  uint64
	items []newsItem
}

// The kinds of news.
const (
	newsTarget    = "target"
	newsColdStart = "cold_start"
	newsFailure   = "failure"
)

// newsItem is one of them: a decision, a cold start or a failed start.
type newsItem struct {
	Number  uint64    `json:"number"`
	Time    time.Time `json:"time"`
	Service string    `json:"service"`
	Kind    string    `json:"kind"`
	From    int       `json:"from"` // of a target
	To      int       `json:"to"`
	MS      int64     `json:"ms"`     // of a cold start
	Reason  string    `json:"reason"` // why, or the message of a failure
}

func (n *news) add(item newsItem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made++
	item.Number = n.made
	if len(n.items) == newsKept {
		copy(n.items, n.items[1:])
		n.items = n.items[:newsKept-1]
	}
	n.items = append(n.items, item)
}

// after returns what is newer than the item of that number, oldest first.
func (n *news) after(number uint64) []newsItem {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := len(n.items)
	for k > 0 && n.items[k-1].Number > number {
		k--
	}
	return append([]newsItem{}, n.items[k:]...)
}
