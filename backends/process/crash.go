package process

import (
	"fmt"
	"regexp"
	"time"
)

// crashSign matches the line with which a program begins the report of its own
// crash: Go, Java, Python, Rust, C++. The cause stands there. Hundreds of lines
// of stacks and registers can follow.
var crashSign = regexp.MustCompile(`^(panic: |fatal error: |SIG[A-Z]+: |runtime: |Exception in thread |# A fatal error has been detected|Traceback \(most recent call last\)|thread '.*panicked at |terminate called )`)

// sameCrash is how long the report of a crash may take. A sign that is older
// belongs to a crash that the program has survived.
const sameCrash = 10 * time.Second

// crash keeps the lines from the first sign of a crash on.
type crash struct {
	begin int // the number of the first line
	at    time.Time
	lines []string
}

// line takes the line with this number.
func (c *crash) line(number int, text string, now time.Time) {
	switch {
	case len(c.lines) > 0 && len(c.lines) < keptFirst && number == c.begin+len(c.lines):
		c.lines = append(c.lines, text)
	case len(c.lines) > 0 && now.Sub(c.at) < sameCrash:
	case mayBeSign(text) && crashSign.MatchString(text):
		c.begin, c.at, c.lines = number, now, append(c.lines[:0], text)
	}
}

// mayBeSign rules most lines out without a regular expression.
func mayBeSign(text string) bool {
	if len(text) < len("panic: ") {
		return false
	}
	switch text[0] {
	case 'p', 'f', 'S', 'r', 'E', '#', 'T', 't':
		return true
	}
	return false
}

// before returns what is kept of the lines before this number, if the program
// still reported its crash at the end.
func (c *crash) before(number int, end time.Time) []string {
	if len(c.lines) == 0 || end.Sub(c.at) >= sameCrash || c.begin >= number {
		return nil
	}
	lines := append([]string(nil), c.lines[:min(len(c.lines), number-c.begin)]...)
	if gap := number - c.begin - len(lines); gap > 0 {
		lines = append(lines, fmt.Sprintf("... (%d lines left out)", gap))
	}
	return lines
}
