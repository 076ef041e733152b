//go:build unix

package process

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
)

func TestLinesGoToTheLogWithInstanceAndStream(t *testing.T) {
	b := open(t, shell("echo out; echo err >&2; exec sleep 100"))
	in := b.one()
	eventually(t, "both lines", func() bool {
		return len(b.messages("stdout")) == 1 && len(b.messages("stderr")) == 1
	})
	for _, e := range b.logs.FilterMessage("out").All() {
		if e.Level != zapcore.InfoLevel || e.ContextMap()["instance"] != in.ID {
			t.Fatalf("logged as %v", e)
		}
	}
}

func TestLongLinesAreCut(t *testing.T) {
	b := open(t, shell(`head -c 100000 /dev/zero | tr '\0' x; echo; echo next; printf 'bad \377 text\r\n'; exec sleep 100`))
	b.one()
	eventually(t, "the lines", func() bool { return len(b.messages("stdout")) == 3 })
	lines := b.messages("stdout")
	if len(lines[0]) != maxLine || lines[1] != "next" || lines[2] != "bad \uFFFD text" {
		t.Fatalf("%d bytes, %q, %q", len(lines[0]), lines[1], lines[2])
	}
}

func TestAFloodIsDroppedWithOneWarningAndDoesNotSlowTheInstance(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	b := open(t, shell("seq 200000; echo >"+done+"; exec sleep 100"))
	began := time.Now()
	in := b.one()
	readEventually(t, done)
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
	b.close(time.Second)

	seconds := int(time.Since(began)/time.Second) + 2
	logged := len(b.messages("stdout"))
	if logged < maxLinesPerSec/2 || logged > seconds*maxLinesPerSec {
		t.Fatalf("%d lines were logged", logged)
	}
	if n := b.logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
		t.Fatalf("%d warnings", n)
	}
	lost := 0
	for _, e := range b.logs.FilterMessage("lines of output were dropped").All() {
		lost += int(e.ContextMap()["lines"].(int64))
	}
	if logged+lost != 200000 {
		t.Fatalf("%d logged and %d dropped of 200000", logged, lost)
	}
}

// slowSink is a log that hangs.
type slowSink struct {
	zapcore.Core
	gate <-chan struct{}
}

func (s *slowSink) Enabled(zapcore.Level) bool { return true }

func (s *slowSink) With([]zapcore.Field) zapcore.Core { return s }

func (s *slowSink) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, s)
}

func (s *slowSink) Write(zapcore.Entry, []zapcore.Field) error {
	<-s.gate
	return nil
}

func TestALogThatHangsDoesNotHoldUpTheInstance(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	gate := make(chan struct{})
	b := open(t, shell("seq 100000; echo >"+done+"; exec sleep 100"), func(env *scaler.Env, _ *scaler.LocalOptions) {
		logger := slog.New(zapslog.NewHandler(&slowSink{Core: zapcore.NewNopCore(), gate: gate}))
		env.Logger = func() *slog.Logger { return logger }
	})
	b.one()
	readEventually(t, done)
	close(gate)
}

func TestAQuietInstanceHasNoGoroutineForItsLog(t *testing.T) {
	o := newOutput(quiet())
	for i := range 5000 {
		o.line("stdout", strconv.Itoa(i), time.Now())
	}
	o.finish()
	if o.pumping || len(o.queue) != 0 {
		t.Fatal("it still writes")
	}
	if lines := strings.Split(o.tail(), "\n"); len(lines) != keptLines || lines[keptLines-1] != "4999" {
		t.Fatalf("kept %q", lines)
	}
}

func TestOutputOfKeptInstancesGoesThroughAFileThatIsCut(t *testing.T) {
	keep := func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true }
	dir := t.TempDir()
	// More than the limit, but not at once, then what must not be lost.
	b := open(t, shell(`
		long() { head -c 5000000 /dev/zero | tr '\0' x; echo; }
		wait_for() { while [ ! -e `+dir+`/$1 ]; do sleep 0.01; done; }
		long; wait_for more; long; wait_for go; echo after; wait_for end; exit 4`), keep)
	in := b.one()
	file := outputFilesOf(recordDir(b.dataDir), in.ID).streams[0]
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	proceed := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a long line", func() bool { return len(b.messages("stdout")) == 1 })
	proceed("more")
	eventually(t, "another one", func() bool { return len(b.messages("stdout")) == 2 })
	// It may be cut in the middle of the second line: the rest of it then stays.
	eventually(t, "the file to be cut", func() bool { return size() <= 5000001 })
	rest := size()
	proceed("go")
	eventually(t, "the line after it", func() bool { return len(b.messages("stdout")) == 3 })
	if n := size(); n != rest+int64(len("after\n")) {
		t.Fatalf("the file has %d bytes, after %d: the instance does not append", n, rest)
	}
	proceed("end")
	end := b.awaitEnd(in.ID)
	if end.Failure.Short != "exit status 4" || !strings.HasSuffix(end.Failure.Detail, "\nafter") {
		t.Fatalf("failure %s", end.Failure.Short)
	}
	b.close(time.Second)
	if size() != -1 {
		t.Fatal("the file is still there")
	}
}

// follows returns a kept instance's output of which nothing was read, with what
// writes to it as the instance does.
func follows(t *testing.T, out *output) (f *followed, stdout *os.File) {
	t.Helper()
	f, err := newFollowed(out, outputFilesOf(t.TempDir(), newID()))
	if err != nil {
		t.Fatal(err)
	}
	stdout, err = os.OpenFile(f.streams[0].write.Name(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdout.Close() })
	return f, stdout
}

func write(t *testing.T, file *os.File, text string) {
	t.Helper()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestOfMoreThanCanBeReadTheEndIsAndTheRestIsCounted(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	out := newOutput(slog.New(zapslog.NewHandler(core)))
	f, stdout := follows(t, out)
	write(t, stdout, "begun")
	f.streams[0].take(false)
	text := " rest\n" + strings.Repeat(strings.Repeat("x", 1<<20-1)+"\n", 10) + "last words"
	write(t, stdout, text)
	f.drain()
	if info, err := stdout.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the file is not cut: %d, %v", info.Size(), err)
	}
	f.close()
	out.finish()

	var lines []string
	for _, e := range logs.FilterField(zap.String("stream", "stdout")).All() {
		lines = append(lines, e.Message)
	}
	long := strings.Repeat("x", maxLine)
	if want := append(append([]string{"begun"}, slices.Repeat([]string{long}, 7)...), "last words"); !slices.Equal(lines, want) {
		t.Errorf("%d lines: %.20q", len(lines), lines)
	}
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
		t.Errorf("%d warnings", n)
	}
	missed := int64(len(text) - maxOutputFile)
	dropped := logs.FilterMessage("lines of output were dropped").All()
	if len(dropped) != 1 || dropped[0].ContextMap()["unread_bytes"] != missed {
		t.Errorf("not read: %v, want %d bytes", dropped, missed)
	}
}

func TestTheLastWordsOfAFloodAreRead(t *testing.T) {
	out := newOutput(nil)
	f, stdout := follows(t, out)
	defer f.close()
	s := f.streams[0]
	// As much as is read at a time, and more that was written meanwhile.
	flood := strings.Repeat("y\n", maxOutputFile/2)
	write(t, stdout, flood)
	if !s.readEnd(maxOutputFile) {
		t.Fatal("not read")
	}
	write(t, stdout, flood[:1<<20]+"last words\n")
	s.cut()
	if !strings.HasSuffix(out.tail(), "y\nlast words") {
		t.Errorf("it ends with %q", out.tail())
	}
	if s.offset != 0 {
		t.Errorf("the file is not cut, %d", s.offset)
	}
}

func TestWhatFollowsACutInTheMiddleOfALineIsReadByTheNextCaddy(t *testing.T) {
	first := newOutput(nil)
	f, stdout := follows(t, first)
	path, name := filepath.Split(f.marks.Name())
	files := outputFilesOf(path, strings.TrimSuffix(name, ".read"))
	write(t, stdout, strings.Repeat(strings.Repeat("x", 1<<10-1)+"\n", maxOutputFile>>10)+"beginning")
	f.streams[0].take(false)
	f.mark()
	// That Caddy is killed, and the instance writes on.
	f.closeFiles()
	write(t, stdout, " and rest\nmore\n")

	out := newOutput(nil)
	f, err := reopenFollowed(out, files, quiet())
	if err != nil {
		t.Fatal(err)
	}
	f.begin()
	f.close()
	if got := out.tail(); got != " and rest\nmore" {
		t.Errorf("read %q", got)
	}
}

func TestAKeptInstanceThatNeverStopsWritingIsReadAllTheSame(t *testing.T) {
	keep := func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true }
	b := open(t, shell("exec timeout 8 yes $(seq 200)"), keep)
	in := b.one()
	file := outputFilesOf(recordDir(b.dataDir), in.ID).streams[0]
	var before int64
	eventually(t, "the file to be cut", func() bool {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		shrunk := info.Size() < before
		before = info.Size()
		return shrunk
	})
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
	b.close(time.Second)
	if n := b.logs.FilterMessage("lines of output were dropped").Len(); n != 1 {
		t.Errorf("it was said %d times that lines were dropped", n)
	}
}

func TestAnExitIsSeenWhileAGrandchildFloodsTheFile(t *testing.T) {
	keep := func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true }
	b := open(t, shell("timeout 8 yes $(seq 200) & sleep 0.3; exit 3"), keep)
	began := time.Now()
	b.scale(1)
	in := b.awaitEnd(b.firstID())
	if took := time.Since(began); took > 7*time.Second {
		t.Errorf("the end was seen after %s", took)
	}
	if in.Failure.Short != "exit status 3" {
		t.Errorf("failure %s", in.Failure.Short)
	}
	b.close(time.Second)
}

func TestSplittingDoesNotDependOnHowItArrives(t *testing.T) {
	text := []byte("one\n\ntwo\r\n" + strings.Repeat("y", maxLine+5) + "\nlast")
	var want []string
	for size := 1; size < 40; size++ {
		o := newOutput(nil)
		s := splitter{out: o, stream: "stdout"}
		for rest := range slices.Chunk(text, size) {
			s.write(rest, time.Now())
		}
		s.flush(time.Now())
		got := strings.Split(o.tail(), "\n")
		if want == nil {
			want = got
			if len(want) != 5 || want[0] != "one" || want[1] != "" || want[2] != "two" || len(want[3]) != maxLine || want[4] != "last" {
				t.Fatalf("split into %q", want)
			}
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Fatalf("in pieces of %d: %q", size, got)
		}
	}
}
