package scaler

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWhatOthersWriteIsMadeReadable(t *testing.T) {
	for text, want := range map[string]string{
		"plain, with ümlauts, 日本 and 👩‍💻\n\ttwice": "plain, with ümlauts, 日本 and 👩‍💻\n\ttwice",
		"\x1b[31mred\x1b[0m":  `\x1b[31mred\x1b[0m`,
		"over\rwritten\x00":   `over\rwritten\x00`,
		"\u009b31m":           `\u009b31m`,
		"admin\u202enimda":    `admin\u202enimda`,
		"line\u2028separator": `line\u2028separator`,
		"not \xff\xfe UTF-8":  "not \uFFFD UTF-8",
	} {
		if got := Readable(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func FuzzReadable(f *testing.F) {
	f.Add("\x1b]0;title\x07\r\n\xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := Readable(text)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, acts) || Readable(got) != got {
			t.Errorf("%q became %q", text, got)
		}
	})
}
