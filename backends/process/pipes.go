package process

import (
	"errors"
	"os"
	"sync"
	"time"
)

// pipes reads the output of an instance that ends with Caddy.
type pipes struct {
	streams [2]*pipe
	readers sync.WaitGroup
}

// pipe is one stream. Its goroutine ends at the end of the stream, or when
// the pipe is closed; a process that was forked away may hold it open for long.
type pipe struct {
	read, write *os.File
	lines       splitter
	drained     chan struct{} // gets a value after each drain
}

func newPipes(out *output) (*pipes, error) {
	p := new(pipes)
	for i, stream := range [...]string{"stdout", "stderr"} {
		r, w, err := os.Pipe()
		if err != nil {
			if i > 0 {
				p.streams[0].read.Close()
				p.streams[0].write.Close()
			}
			return nil, err
		}
		p.streams[i] = &pipe{
			read: r, write: w,
			lines:   splitter{out: out, stream: stream},
			drained: make(chan struct{}),
		}
	}
	return p, nil
}

func (p *pipes) files() (stdout, stderr *os.File) {
	return p.streams[0].write, p.streams[1].write
}

func (p *pipes) begin() {
	for _, s := range p.streams {
		s.write.Close()
		s.write = nil
		p.readers.Go(s.follow)
	}
}

func (p *pipes) drain() {
	for _, s := range p.streams {
		// Wakes the reader, which then takes what is there.
		if err := s.read.SetReadDeadline(time.Unix(1, 0)); err == nil {
			<-s.drained
		}
	}
}

func (p *pipes) close() {
	begun := p.streams[0].write == nil
	if begun {
		p.drain()
	}
	for _, s := range p.streams {
		if !begun {
			s.write.Close()
		}
		s.read.Close()
	}
	p.readers.Wait()
}

// follow reads until the end.
func (s *pipe) follow() {
	// A drain after the end returns at once.
	defer close(s.drained)
	buf := make([]byte, 16<<10)
	var p pace
	for {
		n, err := s.read.Read(buf)
		before := s.lines.lines
		s.lines.write(buf[:n], time.Now())
		if pause := p.pause(cost(n, s.lines.lines-before), time.Now()); pause > 0 {
			time.Sleep(pause)
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.takeRest(buf)
			s.drained <- struct{}{}
		default:
			s.lines.flush(time.Now())
			return
		}
	}
}

// maxRest bounds what a drain reads, since others may write all the while. It
// is what the largest pipe holds.
const maxRest = 1 << 20

// takeRest reads what is there, without waiting.
func (s *pipe) takeRest(buf []byte) {
	if s.read.SetReadDeadline(time.Time{}) != nil {
		return
	}
	for total := 0; total < maxRest; {
		n := readNow(s.read, buf)
		if n <= 0 {
			break
		}
		total += n
		s.lines.write(buf[:n], time.Now())
	}
	s.lines.flush(time.Now())
}
