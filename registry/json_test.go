package registry

import (
	"reflect"
	"strings"
	"testing"
)

// The examples of RFC 7396, appendix A, and its section 3.
func TestMergePatchDoesWhatTheRFCShows(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{
			`{"title":"Goodbye!","author":{"givenName":"John","familyName":"Doe"},"tags":["example","sample"],"content":"This will be unchanged"}`,
			`{"title":"Hello!","phoneNumber":"+01-123-456-7890","author":{"familyName":null},"tags":["example"]}`,
			`{"author":{"givenName":"John"},"content":"This will be unchanged","phoneNumber":"+01-123-456-7890","tags":["example"],"title":"Hello!"}`,
		},
	} {
		target, patch := mustParse(t, c[0]), mustParse(t, c[1])
		if got := string(render(mergePatch(target, patch))); got != c[2] {
			t.Errorf("%s patched with %s is %s, want %s", c[0], c[1], got, c[2])
		}
		if !reflect.DeepEqual(target, mustParse(t, c[0])) {
			t.Errorf("patching %s has changed it", c[0])
		}
	}
}

func mustParse(t *testing.T, text string) any {
	t.Helper()
	value, err := parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value
}

func TestATextThatTwoReadersCouldReadDifferentlyIsRefused(t *testing.T) {
	for text, part := range map[string]string{
		`{"a":1,"a":2}`:                      "twice",
		`{"a":1,"\u0061":2}`:                 "twice",
		`{"x":{"a":1,"b":{},"a":null}}`:      "twice",
		"{\"a\":\"\xff\"}":                   "UTF-8",
		`{} {}`:                              "after its end",
		`{}x`:                                "after its end",
		``:                                   "too early",
		`{"a":`:                              "too early",
		`[1,]`:                               "invalid",
		`{"a":01}`:                           "invalid",
		strings.Repeat("[", 33):              "deeper",
		strings.Repeat(`{"a":`, 33) + "1":    "deeper",
		`"` + strings.Repeat("a", MaxBody):   "bytes",
		strings.Repeat(" ", MaxBody) + `{} `: "bytes",
	} {
		if value, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%.40q: %v, error %v, want one with %q", text, value, err, part)
		}
	}
	for _, text := range []string{
		strings.Repeat("[", 32) + strings.Repeat("]", 32),
		`{"a":{"b":1},"b":{"b":1}}`,
		`123456789012345678901234567890.10e400`,
		` null `,
	} {
		if got := string(render(mustParse(t, text))); got != strings.TrimSpace(text) {
			t.Errorf("%s became %s", text, got)
		}
	}
}
