package hub

import (
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// The bounds of what is kept of the output of one service.
const (
	OutputLines = 500
	outputBytes = 64 << 10
)

// OutputLine is one line that an instance wrote.
type OutputLine struct {
	// Number grows with each line of the service, also over restarts of Caddy.
	// It need not grow by one.
	Number   uint64    `json:"number"`
	Time     time.Time `json:"time"`
	Instance string    `json:"instance"`
	Stream   string    `json:"stream"` // stdout or stderr
	Text     string    `json:"text"`
}

// Output keeps the latest lines of all instances of a service, those
// that have ended included. A follower does not slow down the instances: it
// reads at its own pace, and misses what was dropped meanwhile.
type Output struct {
	mu      sync.Mutex
	lines   []OutputLine
	bytes   int
	number  uint64 // of the newest line
	changed signal
}

// Outputs returns the output of the service, which is made if need be.
func (s *Service) Outputs() *Output {
	if o := s.output.Load(); o != nil {
		return o
	}
	s.output.CompareAndSwap(nil, new(Output))
	return s.output.Load()
}

// Add takes one line. It returns quickly.
func (o *Output) Add(l scaler.OutputLine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.number == 0 {
		// A follower that comes back after a restart of Caddy goes on behind
		// the number that it had.
		o.number = uint64(l.Time.UnixMicro())
	}
	o.number++
	o.lines = append(o.lines, OutputLine{o.number, l.Time, l.Instance, l.Stream, l.Text})
	o.bytes += len(l.Text)
	for len(o.lines) > OutputLines || o.bytes > outputBytes && len(o.lines) > 1 {
		o.bytes -= len(o.lines[0].Text)
		o.lines[0] = OutputLine{}
		o.lines = o.lines[1:]
	}
	o.changed.tell()
}

// After returns the kept lines beyond a number, oldest first, and at most so
// many: the newest. more is closed when there is another one; it is nil if
// there will be none.
func (o *Output) After(number uint64, most int) (lines []OutputLine, more <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	from := len(o.lines)
	for from > 0 && o.lines[from-1].Number > number && len(o.lines)-from < most {
		from--
	}
	return append([]OutputLine{}, o.lines[from:]...), o.changed.Next()
}

// Close ends what follows: the service is gone.
func (o *Output) Close() { o.changed.end() }
