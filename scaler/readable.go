package scaler

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Readable returns a text of a process, a platform or an operator in a form that can be shown to people: in a log, in
// a terminal, in an answer. What would do something there instead of being
// read is written out as Go does it (`\x1b`): control characters other than
// the ends of lines and tabs, and what turns the direction of writing around.
// What is not UTF-8 becomes U+FFFD.
func Readable(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if strings.IndexFunc(text, acts) < 0 {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		if !acts(c) {
			b.WriteRune(c)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(c)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// acts says whether a character does something where it is shown.
func acts(c rune) bool {
	switch {
	case c == '\n', c == '\t':
		return false
	case c < utf8.RuneSelf:
		// Most text: the tables below cost ten times as much.
		return c < ' ' || c == 0x7f
	case unicode.IsControl(c), unicode.Is(unicode.Zl, c), unicode.Is(unicode.Zp, c):
		return true
	}
	return unicode.Is(unicode.Bidi_Control, c)
}
