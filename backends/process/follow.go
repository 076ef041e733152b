package process

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxOutputFile is how large the file of a kept instance's output may grow
	// before it is cut, and how much of it is read at a time. It is larger only
	// by what is written between two looks at it.
	maxOutputFile = 8 << 20
	// maxBytesTaken is how many bytes are read at each look in the long run, and
	// maxLinesTaken how many lines at one look. To read output without end as
	// fast as it is written would take a core, and most of it is dropped.
	maxBytesTaken = 1 << 20
	maxLinesTaken = 25000
	// lastPart is how much is read of what was written while the file was read,
	// before the file is cut.
	lastPart = 64 << 10
	// followPause is how often the files of kept instances are looked at.
	followPause = 200 * time.Millisecond
)

// followed reads the output of an instance that may outlive Caddy: a pipe would
// break with Caddy, a file does not. The instance appends, so that the file
// can be cut while it writes. How far was read is written down, so that the
// next Caddy goes on there.
type followed struct {
	streams [2]*followedFile
	marks   *os.File
	marked  [2]int64 // what stands there
	closed  chan struct{}
	reader  sync.WaitGroup
}

type followedFile struct {
	write, read *os.File
	lines       splitter

	room int64 // what the next look may read; of the reader alone

	mu     sync.Mutex
	offset int64
	total  int64 // bytes that were read
	buf    [4 << 10]byte
}

// outputFiles names the files of an instance's output.
type outputFiles struct {
	streams [2]string // stdout, stderr
	marks   string    // how far they were read
}

func outputFilesOf(dir, instance string) outputFiles {
	base := filepath.Join(dir, instance)
	return outputFiles{[2]string{base + ".stdout", base + ".stderr"}, base + ".read"}
}

func (o outputFiles) all() []string { return append(o.streams[:], o.marks) }

// newFollowed makes the files of a new instance.
func newFollowed(out *output, files outputFiles) (*followed, error) {
	f := &followed{closed: make(chan struct{}), marked: unmarked}
	err := f.open(out, files, os.O_CREATE)
	for i, s := range f.streams {
		if err == nil {
			s.write, err = os.OpenFile(files.streams[i], os.O_WRONLY|os.O_APPEND, 0)
		}
	}
	if err != nil {
		f.closeFiles()
		return nil, err
	}
	return f, nil
}

// reopenFollowed goes on with the files of an instance that runs already. What
// it wrote meanwhile is read too, as far as that is of any use.
func reopenFollowed(out *output, files outputFiles, logger *slog.Logger) (*followed, error) {
	f := &followed{closed: make(chan struct{})}
	err := f.open(out, files, 0)
	if err != nil {
		f.closeFiles()
		return nil, err
	}
	f.marked = f.readMarks()
	for i, s := range f.streams {
		info, err := s.read.Stat()
		switch {
		case err != nil:
			f.closeFiles()
			return nil, err
		case f.marked == unmarked:
			// The position is not known. Skip the lines rather than repeat them.
			s.offset = info.Size()
		case f.marked[i] <= info.Size():
			s.offset = f.marked[i]
		}
		if missed := info.Size() - s.offset - maxOutputFile; missed > 0 {
			logger.Info("output that the instance wrote while no Caddy ran is left out, there is too much of it",
				slog.String("stream", s.lines.stream), slog.Int64("bytes", missed))
			s.offset += missed
			s.lines.cut = true // it is the middle of a line
		}
	}
	return f, nil
}

// open opens what is read, and where it is marked how far.
func (f *followed) open(out *output, files outputFiles, create int) (err error) {
	for i, stream := range [...]string{"stdout", "stderr"} {
		f.streams[i] = &followedFile{room: 2 * maxOutputFile, lines: splitter{out: out, stream: stream}}
	}
	for i, s := range f.streams {
		if s.read, err = os.OpenFile(files.streams[i], os.O_RDWR|create, 0o600); err != nil {
			return err
		}
	}
	f.marks, err = os.OpenFile(files.marks, os.O_RDWR|os.O_CREATE, 0o600)
	return err
}

func (f *followed) files() (stdout, stderr *os.File) {
	return f.streams[0].write, f.streams[1].write
}

func (f *followed) begin() {
	for _, s := range f.streams {
		if s.write != nil {
			s.write.Close()
			s.write = nil
		}
	}
	f.mark()
	f.reader.Go(func() {
		tick := time.NewTicker(followPause)
		defer tick.Stop()
		for {
			select {
			case <-f.closed:
				return
			case <-tick.C:
				for _, s := range f.streams {
					s.takePaced()
				}
				f.mark()
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
	f.mark()
	f.closeFiles()
}

// The text of the marks has one length, so that it can be written over.
const (
	marksFormat = "%020d %020d\n"
	marksLength = 20 + 1 + 20 + 1
)

// unmarked stands for marks that do not exist, or cannot be read.
var unmarked = [2]int64{-1, -1}

// readMarks returns how far the output was read.
func (f *followed) readMarks() (marks [2]int64) {
	text := make([]byte, marksLength)
	if _, err := f.marks.ReadAt(text, 0); err != nil {
		return unmarked
	}
	if _, err := fmt.Sscanf(string(text), marksFormat, &marks[0], &marks[1]); err != nil || min(marks[0], marks[1]) < 0 {
		return unmarked
	}
	return marks
}

// mark writes down how far the output was read.
func (f *followed) mark() {
	now := [2]int64{f.streams[0].position(), f.streams[1].position()}
	if now == f.marked {
		return
	}
	if _, err := fmt.Fprintf(io.NewOffsetWriter(f.marks, 0), marksFormat, now[0], now[1]); err != nil {
		// On a full disk, say. The next Caddy may then log some lines again.
		return
	}
	f.marked = now
}

func (f *followed) closeFiles() {
	for _, s := range f.streams {
		if s.write != nil {
			s.write.Close()
		}
		if s.read != nil {
			s.read.Close()
		}
	}
	if f.marks != nil {
		f.marks.Close()
	}
}

// position is the end of the last line that was handed on. Of a line whose
// beginning went with the cut, it is where the rest begins.
func (s *followedFile) position() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines.cut {
		return s.offset
	}
	return max(0, s.offset-int64(len(s.lines.part)))
}

// take reads what was written since the last time. It ends also when the
// instance writes faster than it reads.
func (s *followedFile) take(flush bool) { s.takeAtMost(maxOutputFile, flush) }

// takePaced is take at the pace of output without end: the last so many bytes
// of what was written. After a pause it is as many as take reads.
func (s *followedFile) takePaced() {
	s.room = min(s.room+maxBytesTaken, 2*maxOutputFile)
	before := s.totalRead()
	s.takeAtMost(min(s.room, maxOutputFile), false)
	s.room -= s.totalRead() - before
}

// totalRead is how many bytes were read in all.
func (s *followedFile) totalRead() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// takeAtMost is take for the last so many bytes of what was written.
func (s *followedFile) takeAtMost(most int64, flush bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readEnd(most) && s.offset >= maxOutputFile {
		s.cut()
	}
	if flush {
		s.lines.flush(time.Now())
	}
}

// readEnd reads on to the end of the file, but not more than so many bytes: the
// last ones. What is written meanwhile may be left for the next time.
func (s *followedFile) readEnd(most int64) bool {
	info, err := s.read.Stat()
	if err != nil {
		return false
	}
	s.leaveOut(info.Size() - s.offset - most)
	enough := s.lines.lines + maxLinesTaken
	for stop := s.offset + most; s.offset < stop; {
		if s.lines.lines > enough {
			// The last part tells why an instance ends.
			s.leaveOut(info.Size() - s.offset - lastPart)
			enough = math.MaxInt
		}
		n, err := s.read.ReadAt(s.buf[:min(int64(len(s.buf)), stop-s.offset)], s.offset)
		s.offset += int64(n)
		s.total += int64(n)
		s.lines.write(s.buf[:n], time.Now())
		if err != nil {
			return err == io.EOF
		}
	}
	return true
}

// cut empties the file: the next write of the instance then is its beginning.
// The file may have grown while it was read, so what was written last, which
// tells why an instance ends, is read first; that takes so little time that
// hardly anything more is missed.
func (s *followedFile) cut() {
	if !s.readEnd(lastPart) {
		return
	}
	if info, err := s.read.Stat(); err == nil {
		s.leaveOut(info.Size() - s.offset)
	}
	if s.read.Truncate(0) == nil {
		s.offset = 0
	}
}

// leaveOut goes on so many bytes later, if any.
func (s *followedFile) leaveOut(missed int64) {
	if missed > 0 {
		s.offset += missed
		s.lines.leaveOut(missed, time.Now())
	}
}
