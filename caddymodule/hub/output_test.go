package hub

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// wrote lets an instance of the service write a line.
func wrote(s *Service, instance, text string) {
	s.Outputs().Add(scaler.OutputLine{Instance: instance, Stream: "stdout", Text: text, Time: time.Now()})
}

// texts are those of the lines.
func texts(lines []OutputLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.Text)
	}
	return strings.Join(all, ",")
}

func TestTheOutputOfAServiceIsBounded(t *testing.T) {
	t.Parallel()
	var s Service
	for k := range OutputLines + 10 {
		wrote(&s, "i", fmt.Sprint(k))
	}
	lines, _ := s.Outputs().After(0, OutputLines*2)
	if len(lines) != OutputLines || lines[0].Text != "10" || lines[OutputLines-1].Text != fmt.Sprint(OutputLines+9) {
		t.Errorf("%d lines from %q", len(lines), lines[0].Text)
	}
	long := strings.Repeat("x", outputBytes/4)
	for range 6 {
		wrote(&s, "i", long)
	}
	if lines, _ = s.Outputs().After(0, OutputLines); len(lines) != 4 || s.Outputs().bytes > outputBytes {
		t.Errorf("%d lines with %d bytes", len(lines), s.Outputs().bytes)
	}
	// One line alone is kept however long it is.
	wrote(&s, "i", long+long+long+long+long)
	if lines, _ = s.Outputs().After(0, OutputLines); len(lines) != 1 {
		t.Errorf("%d lines", len(lines))
	}
	if cap(s.Outputs().lines) > 4*OutputLines {
		t.Errorf("the memory for %d lines is kept", cap(s.Outputs().lines))
	}
}

func TestAFollowerGoesOnBehindTheLineThatItHad(t *testing.T) {
	t.Parallel()
	var s Service
	before := time.Now()
	wrote(&s, "a", "1")
	wrote(&s, "b", "2")
	lines, more := s.Outputs().After(0, 1)
	if texts(lines) != "2" {
		t.Errorf("the newest is %q", texts(lines))
	}
	// The numbers of the next Caddy are higher than those of the one before.
	if lines[0].Number < uint64(before.UnixMicro()) {
		t.Errorf("number %d", lines[0].Number)
	}
	select {
	case <-more:
		t.Error("there is more, and nothing was written")
	default:
	}
	wrote(&s, "a", "3")
	<-more
	if lines, more = s.Outputs().After(lines[0].Number, 10); texts(lines) != "3" {
		t.Errorf("after 2 comes %q", texts(lines))
	}
	s.Outputs().Close()
	<-more
	if _, more = s.Outputs().After(0, 10); more != nil {
		t.Error("a service that is gone will write no more")
	}
}
