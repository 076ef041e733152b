package caddymodule

import (
	"bytes"
	"encoding/json"
	"html"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/scaler"
)

// injection is a text that a client sends or an instance writes, and that the
// handler `templates` would turn into a value of Caddy's environment.
const injection = "{{`PATH`|env}}"

// failingWith returns a fleet whose starts fail for good, and that writes text
// before.
func failingWith(t *testing.T, text string) *fleet {
	t.Helper()
	f := newFleet(t)
	f.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "exit status 127", Detail: text}
	return f
}

func TestNoTemplateRunsOnUshersOwnAnswers(t *testing.T) {
	t.Parallel()
	types := "text/html text/plain application/problem+json application/json text/event-stream"
	for name, x := range map[string]struct {
		site, options []string
		header        []string
		failing       bool
	}{
		"waiting page":                   {nil, []string{"waiting_page {\nafter 0s\n}"}, person, false},
		"title of the waiting page":      {nil, []string{"waiting_page {\nafter 0s\ntitle {http.request.uri}\n}"}, person, false},
		"waiting page with a reason":     {nil, []string{"error_detail full", "waiting_page {\nafter 0s\n}"}, person, true},
		"error page":                     {nil, []string{"error_detail full"}, []string{"Accept", "text/html"}, true},
		"text":                           {nil, []string{"error_detail full"}, []string{"Accept", "text/plain"}, true},
		"problem":                        {nil, []string{"error_detail full"}, nil, true},
		"answer of an error route":       {[]string{"handle_errors {\nrespond \"{http.usher.error.detail} {http.request.orig_uri}\"\n}"}, nil, nil, true},
		"error route that uses no usher": {[]string{"handle_errors {\nheader Content-Type text/html\nrespond \"{http.request.orig_uri}\"\n}"}, nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var f *fleet
			if x.failing {
				f = failingWith(t, "GET "+injection)
			} else {
				f = newFleet(t)
				f.manual = true
			}
			c := start(t, site(strings.Join(x.site, "\n")+"\ntemplates {\nmime "+types+"\n}\n"+f.usher(x.options...)))
			// As a client may send it: it escapes nothing.
			r := c.get("/p?"+injection, x.header...)
			if r.status != 503 || r.header.Get("Usher-Error") == "" || r.body == "" {
				t.Fatalf("%+v", r)
			}
			if strings.Contains(r.body, os.Getenv("PATH")) {
				t.Errorf("the template was run:\n%s", r.body)
			}
		})
	}
}

// A handler that keeps the writer below it to itself cannot be passed by. The
// text itself must not do anything either.
func TestForeignTextsContainNoMarksOfATemplateLanguage(t *testing.T) {
	t.Parallel()
	mark := regexp.MustCompile(`[{\[(<][^\sa-zA-Z0-9.,:;/_\\"\x{80}-\x{10FFFF}-]|[$#%@&*!?][{\[(<]`)
	for _, text := range []string{
		injection, "a {{b}} c", "[[x]]", "<% x %>", "${x}", "#{x}", "{%x%}", "<!--#exec cmd=x-->", "<?php ?>", "((x))", `"{{x}}"`, `\{{x}}`, "{{", "{", "ü{{ü",
	} {
		if got := string(answer.ForeignHTML(text)); mark.MatchString(got) || html.UnescapeString(got) != text {
			t.Errorf("HTML for %q is %q", text, got)
		}
		if got := answer.ForeignLine(text); mark.MatchString(got) || strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(text, " ", "") {
			t.Errorf("line for %q is %q", text, got)
		}
		plain, err := json.Marshal(map[string]any{"a": []any{text, map[string]string{text: text}}})
		if err != nil {
			t.Fatal(err)
		}
		got := answer.ForeignJSON(plain)
		var a, b any
		if err := json.Unmarshal(plain, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("JSON for %q is %s: %v", text, got, err)
		}
		for _, s := range regexp.MustCompile(`"(\\.|[^"\\])*"`).FindAllString(string(got), -1) {
			if mark.MatchString(s) {
				t.Errorf("JSON for %q has %s", text, s)
			}
		}
		if got := answer.UrlReference("/p?" + text); strings.ContainsAny(got, "{}[]()<>\"'`\\ ü") {
			t.Errorf("URL for %q is %q", text, got)
		}
	}
	for _, text := range []string{"exit status 1 (core dumped)", "listens on [::1]:3000", "a.b, c-d: e/f_g; 5"} {
		if got := answer.ForeignLine(text); got != text {
			t.Errorf("%q is written %q", text, got)
		}
		plain := []byte(`{"a":"` + text + `"}`)
		if got := answer.ForeignJSON(plain); !bytes.Equal(got, plain) {
			t.Errorf("%s is written %s", plain, got)
		}
	}
	if got, want := answer.UrlReference("/a%20b/ü?x[]=1&y=%zz~"), "/a%20b/%C3%BC?x%5B%5D=1&y=%zz~"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Every text of the page, also one that is added later.
func TestEveryTextOfTheWaitingPageIsWrittenForHTML(t *testing.T) {
	t.Parallel()
	own := map[string]bool{"Nonce": true, "Script": true, "Language": true, "State": true, "Service": true}
	d := PageData{Script: "<script></script>"}
	v := reflect.ValueOf(&d).Elem()
	for k := range v.NumField() {
		if name := v.Type().Field(k).Name; v.Field(k).Kind() == reflect.String && !own[name] {
			v.Field(k).SetString(selfReference("/" + injection))
			if name != "Again" {
				v.Field(k).SetString(injection)
			}
		}
	}
	safe := reflect.ValueOf(d.safe())
	for k := range v.NumField() {
		name := v.Type().Field(k).Name
		if f := safe.FieldByName(name); f.Kind() == reflect.String && strings.Contains(f.String(), "{{") {
			t.Errorf("%s is %q", name, f.String())
		}
	}
}

func TestATextAnswerDoesNothingInATerminal(t *testing.T) {
	t.Parallel()
	f := failingWith(t, "\x1b]0;owned\a\r\nHTTP/1.1 200 OK\r\u2028\u202e\u009b31m")
	c := start(t, site(f.usher("error_detail full")))
	for _, accept := range []string{"text/plain", "text/html", answer.TypeProblem} {
		r := c.get("/", "Accept", accept)
		if strings.ContainsAny(strings.TrimSuffix(r.body, "\n"), "\x1b\a\r\u2028\u202e\u009b") ||
			accept == "text/plain" && strings.Count(r.body, "\n") != 1 {
			t.Errorf("%s: %q", accept, r.body)
		}
	}
}
