package caddymodule

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
)

func TestEveryLanguageHasTheTextsOfTasks(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, w := range translations {
		texts := append([]string{w.task.cancelling, w.task.attempts, w.task.open, w.task.hint}, w.task.states[async.Pending:]...)
		for _, text := range texts {
			if other := seen[text]; text == "" || other != "" {
				t.Errorf("%s has the text %q, which %q has", w.language, text, other)
			}
			seen[text] = w.language
		}
		if !strings.Contains(w.task.attempts, "%d") {
			t.Errorf("%s: %q", w.language, w.task.attempts)
		}
	}
}

func TestThePageOfATaskShowsWhatThereIs(t *testing.T) {
	t.Parallel()
	const bar, link = "<progress", "<a href="
	for name, x := range map[string]struct {
		task      async.Task
		ahead     int
		due       time.Duration
		has, lack []string
	}{
		"the next one": {
			async.Task{State: async.Pending, Progress: -1},
			0, 0,
			[]string{"Waiting for its turn", bar, "This page refreshes"},
			[]string{link, "before you", "Attempts", "max="},
		},
		"one of many": {
			async.Task{State: async.Pending, Progress: -1},
			100, 0,
			[]string{"100&#43; others are before you."},
			nil,
		},
		"after an attempt": {
			async.Task{State: async.Pending, Attempt: 2, Reason: "it <b>broke</b> {{env \"HOME\"}}", Progress: -1},
			5, 30 * time.Second,
			[]string{"It is tried again in 30 seconds.", "Attempts: 2", "it &lt;b&gt;broke&lt;/b&gt; &#123;&#123;env"},
			[]string{"before you", "<b>", "{{"},
		},
		"one that runs": {
			async.Task{State: async.Running, Attempt: 1, Progress: 40},
			0, 0,
			[]string{"In progress", `max="100" value="40"`},
			[]string{link, "before you"},
		},
		"one that runs and tells no progress": {
			async.Task{State: async.Running, Attempt: 1, Progress: -1},
			0, 0,
			[]string{bar},
			[]string{"max="},
		},
		"one that is to be cancelled": {
			async.Task{State: async.Running, Attempt: 1, Progress: -1, Cancelling: true},
			0, 0,
			[]string{"Being cancelled"},
			[]string{"In progress"},
		},
		"one that is done": {
			async.Task{State: async.Done, Attempt: 1, Status: 200, Progress: 40},
			0, 0,
			[]string{"Done", `<a href="./id7/result">Open the result</a>`},
			[]string{bar, "This page refreshes"},
		},
		"one that is dead": {
			async.Task{State: async.Dead, Attempt: 5, Reason: "no answer", Progress: -1},
			0, 0,
			[]string{"Given up", "no answer"},
			[]string{bar, link},
		},
	} {
		x.task.ID, x.task.Queue = "id7", "web"
		var b bytes.Buffer
		if err := taskPageTemplate.Execute(&b, english.describe(x.task, x.ahead, x.due)); err != nil {
			t.Fatal(err)
		}
		page := b.String()
		for _, text := range append(x.has, "<title>web</title>", "<h1>web</h1>", `<html lang="en">`) {
			if !strings.Contains(page, text) {
				t.Errorf("%s: the page does not have %q:\n%s", name, text, page)
			}
		}
		body := page[strings.Index(page, "<body>"):]
		for _, text := range append(x.lack, "<script", "style=") {
			if strings.Contains(body, text) {
				t.Errorf("%s: the page has %q:\n%s", name, text, body)
			}
		}
	}
}
