package caddymodule

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

// wrote lets an instance of the service write a line.
func wrote(s *hub.Service, instance, text string) {
	s.Outputs().Add(scaler.OutputLine{Instance: instance, Stream: "stdout", Text: text, Time: time.Now()})
}

// texts are those of the lines.
func texts(lines []hub.OutputLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.Text)
	}
	return strings.Join(all, ",")
}

func TestLogsAnswersWithTheLatestLines(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher()))
	srv := adminServer(t)
	logs := "/usher/services/" + f.name + "/logs"
	if r := call(t, srv, "GET", logs, ""); strings.TrimSpace(r.body) != "[]" || r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	s := hub.Latest.Load().Service(f.name)
	for k, instance := range []string{"a", "b", "a"} {
		wrote(s, instance, fmt.Sprint(k))
	}
	for query, want := range map[string]string{
		"": "0,1,2", "?lines=2": "1,2", "?lines=0": "", "?instance=a": "0,2", "?instance=a&lines=1": "2", "?instance=none": "",
	} {
		var lines []hub.OutputLine
		r := call(t, srv, "GET", logs+query, "")
		if err := json.Unmarshal([]byte(r.body), &lines); err != nil || texts(lines) != want {
			t.Errorf("%s: %s, %v; want %s", query, r.body, err, want)
		}
		if query == "" && (lines[0].Instance != "a" || lines[0].Stream != "stdout" || lines[0].Time.IsZero()) {
			t.Errorf("%+v", lines[0])
		}
		if query == "?lines=2" {
			r := call(t, srv, "GET", fmt.Sprintf("%s?after=%d", logs, lines[0].Number), "")
			if err := json.Unmarshal([]byte(r.body), &lines); err != nil || texts(lines) != "2" {
				t.Errorf("after line 1: %s, %v", r.body, err)
			}
		}
	}
	for query, words := range map[string]string{"?lines=x": "number of lines", "?lines=-1": "number of lines", "?after=x": "number of a line"} {
		if r := call(t, srv, "GET", logs+query, ""); r.status != 400 || !strings.Contains(r.body, words) {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if r := call(t, srv, "POST", logs, ""); r.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", r.status)
	}
}

func TestLogsFollowsUntilTheServiceIsGone(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	srv := adminServer(t)
	s := hub.Latest.Load().Service(f.name)
	wrote(s, "a", "first")
	wrote(s, "b", "of another")
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/usher/services/"+f.name+"/logs?instance=a", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Fatal(kind)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func(want ...string) {
		t.Helper()
		for lines.Scan() {
			text := lines.Text()
			if text == "" || text[0] == ':' {
				continue
			}
			if !strings.HasPrefix(text, want[0]) || !strings.Contains(text, want[1]) {
				t.Errorf("%q, want %q", text, want)
			}
			return
		}
		t.Fatalf("the stream ends, want %q", want)
	}
	next("event: line", "")
	next("data: ", `"text":"first"`)
	wrote(s, "b", "of another")
	wrote(s, "a", "second")
	next("event: line", "")
	next("data: ", `"text":"second"`)
	c.end()
	next("event: bye", "")
}

func TestLogsSaysWhyThereAreNone(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site("usher "+f.name+" {\nbackend test "+f.name+" silent\n}\n"))
	srv := adminServer(t)
	r := call(t, srv, "GET", "/usher/services/"+f.name+"/logs", "")
	if r.status != http.StatusConflict || !strings.Contains(r.body, "discarded") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestTheLiveViewShowsOutputUnlessItIsTurnedOff(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site("handle /on {\nusher_status\n}\nhandle /off {\nusher_status {\noutput off\n}\n}\nhandle {\n"+f.usher()+"\n}\n"))
	s := hub.Latest.Load().Service(f.name)
	wrote(s, "a", "one")
	wrote(s, "a", "two")
	var lines []hub.OutputLine
	r := c.get("/on?output&service=" + f.name)
	if err := json.Unmarshal([]byte(r.body), &lines); err != nil || texts(lines) != "one,two" || r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	r = c.get(fmt.Sprintf("/on?output&service=%s&after=%d", f.name, lines[0].Number))
	if err := json.Unmarshal([]byte(r.body), &lines); err != nil || texts(lines) != "two" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := c.get("/on?output&service=missing"); r.status != 404 {
		t.Errorf("of no service: %d", r.status)
	}
	if r := c.get("/off?output&service=" + f.name); r.status != 403 || strings.Contains(r.body, "one") {
		t.Errorf("turned off: %d %s", r.status, r.body)
	}
	for path, want := range map[string]bool{"/on": true, "/off": false} {
		if got := strings.Contains(c.get(path).body, "data-output"); got != want {
			t.Errorf("%s: the page asks for output: %v", path, got)
		}
	}
}
