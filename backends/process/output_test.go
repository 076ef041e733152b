//go:build unix

package process

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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
		logger := zap.New(&slowSink{Core: zapcore.NewNopCore(), gate: gate})
		env.Logger = func() *zap.Logger { return logger }
	})
	b.one()
	readEventually(t, done)
	close(gate)
}

func TestAQuietInstanceHasNoGoroutineForItsLog(t *testing.T) {
	o := newOutput(zap.NewNop())
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
	// More than the limit, then what must not be lost.
	b := open(t, shell(`head -c 9000000 /dev/zero | tr '\0' x; echo; while [ ! -e `+dir+`/go ]; do sleep 0.01; done; echo after; sleep 0.5; exit 4`), keep)
	in := b.one()
	file := outputFilesOf(recordDir(b.dataDir), in.ID).streams[0]
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	eventually(t, "the long line", func() bool { return len(b.messages("stdout")) == 1 })
	eventually(t, "the file to be cut", func() bool { return size() == 0 })
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line after it", func() bool { return len(b.messages("stdout")) == 2 })
	if n := size(); n != int64(len("after\n")) {
		t.Fatalf("the file has %d bytes: the instance does not append", n)
	}
	end := b.awaitEnd(in.ID)
	if end.Failure.Short != "exit status 4" || !strings.HasSuffix(end.Failure.Detail, "\nafter") {
		t.Fatalf("failure %s", end.Failure.Short)
	}
	b.close(time.Second)
	if size() != -1 {
		t.Fatal("the file is still there")
	}
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
