package process

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// The bounds of what an instance may write into Caddy's memory and log.
const (
	maxLine        = 8 << 10 // longer lines are cut
	maxLinesPerSec = 1000
	maxBytesPerSec = 256 << 10 // of lines, as they are logged
	keptLines      = 20
	keptFirst      = 20      // lines from the first sign of a crash on
	maxQueued      = 1 << 20 // bytes that wait to be logged
)

// output takes the lines of an instance: it keeps the last ones, and hands on
// the others to the log without ever making the instance wait for it.
type output struct {
	logger *slog.Logger // nil: discard
	// keep takes each line, also one that is too much for the log; nil: nothing.
	keep func(stream, text string, now time.Time)

	mu      sync.Mutex
	last    [keptLines]string
	count   int
	crash   crash
	lastAt  time.Time // of the last line
	queue   []outputLine
	queued  int // bytes
	pumping bool
	idle    sync.Cond // pumping has become false

	second  time.Time // when the running second began
	inIt    int       // lines in it
	bytes   int       // of these lines
	lost    int       // lines dropped since the warning
	unread  int64     // bytes left out since the warning
	behind  bool      // bytes were left out in the running second
	flooded bool
}

type outputLine struct {
	stream, text string
	// lost is the number of dropped lines. unread is a number of dropped bytes
	// whose lines were not counted. If not zero, they stand in place of a line.
	lost   int
	unread int64
	// flood, in place of a line, says that lines are being dropped.
	flood bool
}

func newOutput(logger *slog.Logger) *output {
	o := &output{logger: logger}
	o.idle.L = &o.mu
	return o
}

// line takes one line. It returns quickly.
func (o *output) line(stream, text string, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last[o.count%keptLines] = text
	o.crash.line(o.count, text, now)
	o.count++
	o.lastAt = now
	if o.keep != nil {
		o.keep(stream, text, now)
	}
	if o.logger == nil {
		return
	}
	o.secondLocked(now)
	o.inIt++
	o.bytes += len(text)
	if o.tooMuchLocked() || o.queued+len(text) > maxQueued {
		o.lost++
		o.floodLocked()
		return
	}
	o.enqueueLocked(outputLine{stream: stream, text: text})
}

// leaveOut takes note of bytes that were not even read.
func (o *output) leaveOut(bytes int64, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.logger == nil {
		return
	}
	o.secondLocked(now)
	o.unread += bytes
	o.behind = true
	o.floodLocked()
}

// secondLocked begins the next second when it is time. A second without a loss
// ends a flood.
func (o *output) secondLocked(now time.Time) {
	if now.Sub(o.second) < time.Second {
		return
	}
	if o.flooded && !o.tooMuchLocked() && !o.behind {
		o.calmLocked()
	}
	o.second, o.inIt, o.bytes, o.behind = now, 0, 0, false
}

// tooMuchLocked tells whether more was written in the running second than is
// logged.
func (o *output) tooMuchLocked() bool {
	return o.inIt > maxLinesPerSec || o.bytes > maxBytesPerSec
}

// floodLocked warns, once in a flood.
func (o *output) floodLocked() {
	if !o.flooded {
		o.flooded = true
		o.enqueueLocked(outputLine{flood: true})
	}
}

// calmLocked ends a flood: what was dropped in it is counted.
func (o *output) calmLocked() {
	if o.lost > 0 || o.unread > 0 {
		o.enqueueLocked(outputLine{lost: o.lost, unread: o.unread})
	}
	o.flooded, o.lost, o.unread = false, 0, 0
}

func (o *output) enqueueLocked(l outputLine) {
	o.queue = append(o.queue, l)
	o.queued += len(l.text)
	if !o.pumping {
		o.pumping = true
		go o.pump()
	}
}

// pump writes to the log, which may be slow, and ends when there is nothing
// left: a silent instance has no such goroutine.
func (o *output) pump() {
	for {
		o.mu.Lock()
		batch := o.queue
		o.queue, o.queued = nil, 0
		if len(batch) == 0 {
			o.pumping = false
			o.idle.Broadcast()
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		for _, l := range batch {
			switch {
			case l.flood:
				o.logger.Warn("the instance writes faster than its output is logged: lines are dropped until it writes less",
					slog.Int("lines_per_second", maxLinesPerSec), slog.Int("bytes_per_second", maxBytesPerSec))
			case l.lost > 0 || l.unread > 0:
				o.logger.Info("lines of output were dropped", slog.Int("lines", l.lost), slog.Int64("unread_bytes", l.unread))
			default:
				o.logger.Info(l.text, slog.String("stream", l.stream))
			}
		}
	}
}

// finish says what was dropped at the end, and waits until all is logged.
func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calmLocked()
	for o.pumping {
		o.idle.Wait()
	}
}

// tail returns the last lines. Before them go the lines from the first sign of
// a crash on, if the last lines do not reach back to it.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	begin := max(0, o.count-keptLines)
	lines := o.crash.before(begin, o.lastAt)
	for i := begin; i < o.count; i++ {
		lines = append(lines, o.last[i%keptLines])
	}
	return strings.Join(lines, "\n")
}

// splitter makes lines of what arrives.
type splitter struct {
	out    *output
	stream string
	part   []byte
	cut    bool // the rest of this line is dropped
	lines  int  // how many were handed on
}

// write takes what was read.
func (s *splitter) write(p []byte, now time.Time) {
	for len(p) > 0 {
		line, end := p, -1
		for i, c := range p {
			if c == '\n' {
				line, end = p[:i], i
				break
			}
		}
		if !s.cut {
			room := maxLine - len(s.part)
			if len(line) > room {
				line, s.cut = line[:room], true
			}
			s.part = append(s.part, line...)
		}
		if end < 0 {
			return
		}
		if s.cut && len(s.part) == 0 {
			s.cut = false // the end of a line that was left out
		} else {
			s.emit(now)
		}
		p = p[end+1:]
	}
}

// leaveOut says that so many bytes are missing before those that come next,
// which therefore are from the middle of a line.
func (s *splitter) leaveOut(bytes int64, now time.Time) {
	s.flush(now)
	s.cut = true
	s.out.leaveOut(bytes, now)
}

// flush takes what was written without a newline as a line of its own.
func (s *splitter) flush(now time.Time) {
	if len(s.part) > 0 {
		s.emit(now)
	}
}

func (s *splitter) emit(now time.Time) {
	text := scaler.Readable(strings.TrimSuffix(string(s.part), "\r"))
	s.part, s.cut = s.part[:0], false
	s.lines++
	s.out.line(s.stream, text, now)
}

// source is where the output of an instance is read from.
type source interface {
	// files returns what becomes stdout and stderr of the process.
	files() (stdout, stderr *os.File)
	// begin lets go of the ends of the process and starts to read.
	begin()
	// drain reads what was written so far, without waiting for more.
	drain()
	// close reads what is left and ends the reading. It comes after begin, or
	// in place of it when there is no process.
	close()
}
