package process

import (
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxOutputFile is how large the file of a kept instance's output may grow
	// before it is cut.
	maxOutputFile = 8 << 20
	// followPause is how often the files of kept instances are looked at.
	followPause = 200 * time.Millisecond
)

// followed reads the output of an instance that may outlive Caddy: a pipe would
// break with Caddy, a file does not. The instance appends, so that the file
// can be cut while it writes.
type followed struct {
	streams [2]*followedFile
	closed  chan struct{}
	reader  sync.WaitGroup
}

type followedFile struct {
	write, read *os.File
	lines       splitter

	mu     sync.Mutex
	offset int64
	buf    [4 << 10]byte
}

// outputPaths names the two files of an instance.
func outputPaths(dir, instance string) [2]string {
	return [2]string{filepath.Join(dir, instance+".stdout"), filepath.Join(dir, instance+".stderr")}
}

func newFollowed(out *output, paths [2]string) (*followed, error) {
	f := &followed{closed: make(chan struct{})}
	for i, stream := range [...]string{"stdout", "stderr"} {
		w, err := os.OpenFile(paths[i], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			f.closeFiles()
			return nil, err
		}
		f.streams[i] = &followedFile{write: w, lines: splitter{out: out, stream: stream}}
		if f.streams[i].read, err = os.OpenFile(paths[i], os.O_RDWR, 0); err != nil {
			f.closeFiles()
			return nil, err
		}
	}
	return f, nil
}

func (f *followed) files() (stdout, stderr *os.File) {
	return f.streams[0].write, f.streams[1].write
}

func (f *followed) begin() {
	for _, s := range f.streams {
		s.write.Close()
		s.write = nil
	}
	f.reader.Go(func() {
		tick := time.NewTicker(followPause)
		defer tick.Stop()
		for {
			select {
			case <-f.closed:
				return
			case <-tick.C:
				for _, s := range f.streams {
					s.take(false)
				}
			}
		}
	})
}

func (f *followed) drain() {
	for _, s := range f.streams {
		s.take(true)
	}
}

func (f *followed) close() {
	close(f.closed)
	f.reader.Wait()
	for _, s := range f.streams {
		s.take(true)
	}
	f.closeFiles()
}

func (f *followed) closeFiles() {
	for _, s := range f.streams {
		if s == nil {
			continue
		}
		if s.write != nil {
			s.write.Close()
		}
		if s.read != nil {
			s.read.Close()
		}
	}
}

// take reads what was written since the last time, and cuts the file when it
// has grown large: the next write of the instance then is its beginning.
func (s *followedFile) take(flush bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		n, err := s.read.ReadAt(s.buf[:], s.offset)
		s.offset += int64(n)
		s.lines.write(s.buf[:n], time.Now())
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	if flush {
		s.lines.flush(time.Now())
	}
	if s.offset >= maxOutputFile && s.read.Truncate(0) == nil {
		s.offset = 0
	}
}
