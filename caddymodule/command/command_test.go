package command

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

var update = flag.Bool("update", false, "write the golden files anew")

// aDay is when the commands of the tests are given.
var aDay = time.Date(2026, time.March, 4, 12, 30, 0, 0, time.UTC)

func aDayNow() time.Time { return aDay }

// scriptedAdmin answers as the admin API does, and always the same. What a
// platform says in it would clear the screen.
var scriptedAdmin = map[string]string{
	"GET /usher/services": `[
		{"name":"api","backend":"process","state":"awake","target":3,"min":0,"max":4,"instances":{"starting":1,"ready":2,"ejected":0,"draining":0},"slots":{"total":40,"in_use":38},"waiting":0,"oldest_wait_ms":0,"cold_starts":3,"last_cold_start_ms":64,"last_error":null},
		{"name":"blog","backend":"kubernetes","state":"failing","target":1,"min":0,"max":1,"instances":{"starting":0,"ready":0,"ejected":0,"draining":0},"slots":{"total":0,"in_use":0},"waiting":4,"oldest_wait_ms":12345,"cold_starts":0,"last_cold_start_ms":0,"last_error":"image: \u001b[2J\u009b2Jno \u202esuch"},
		{"name":"events","backend":"marathon","state":"asleep","target":0,"min":0,"max":1,"instances":{"starting":0,"ready":0,"ejected":0,"draining":0},"slots":{"total":null,"in_use":0},"waiting":0,"oldest_wait_ms":0,"cold_starts":1,"last_cold_start_ms":3100,"last_error":null}]`,
	"GET /usher/services/api": `{"name":"api","backend":"process","state":"awake","target":3,"min":0,"max":4,"instances":{"starting":1,"ready":2,"ejected":0,"draining":0},"slots":{"total":40,"in_use":38},"waiting":0,"oldest_wait_ms":0,"cold_starts":3,"last_cold_start_ms":64,"last_error":null,
		"instance_list":[
			{"id":"i1","address":"127.0.0.1:21000","state":"ready","revision":"r1","slots":20,"in_use":20,"since":"2026-03-04T10:27:30Z"},
			{"id":"i2","address":"127.0.0.1:21001","state":"ready","revision":"r1","slots":20,"in_use":18,"since":"2026-03-04T12:29:00Z"},
			{"id":"i3","address":"","state":"starting","revision":"r1","slots":0,"in_use":0,"since":"2026-03-04T12:29:59.9Z"}],
		"config":{"backend":{"type":"process","command":"/srv/api"},"idle_timeout":"10m0s"}}`,
	"GET /usher/services/api/decisions": `[
		{"time":"2026-03-03T08:00:00Z","from":1,"to":0,"reason":"idle for 10m0s","inputs":{"in_use":0,"waiting":0,"demand":0,"ready":1,"min":0,"max":4,"concurrency":20,"failures":0,"idle_ms":600000}},
		{"time":"2026-03-04T12:27:30Z","from":0,"to":1,"reason":"0 in use, 1 waiting","inputs":{"in_use":0,"waiting":1,"demand":1,"ready":0,"min":0,"max":4,"concurrency":20,"failures":2}},
		{"time":"2026-03-04T12:29:45Z","from":1,"to":3,"reason":"20 in use, 21 waiting","inputs":{"in_use":20,"waiting":21,"demand":41,"ready":1,"min":0,"max":4,"concurrency":20,"failures":0}}]`,
	"GET /usher/services/events": `{"name":"events","backend":"marathon","state":"suspended","target":0,"min":0,"max":1,"instances":{"starting":0,"ready":0,"ejected":0,"draining":0},"slots":{"total":null,"in_use":0},"waiting":0,"oldest_wait_ms":0,"cold_starts":0,"last_cold_start_ms":0,"last_error":null,
		"instance_list":[],"config":{"idle_timeout":"off"},"suspension":{"reason":"moving house \u001b[31m","since":"2026-03-04T12:00:00Z"}}`,
	"GET /usher/services/events/decisions": `[]`,
	"GET /usher/services/shop": `{"name":"shop","backend":"process","state":"failing","target":0,"min":0,"max":1,"instances":{"starting":0,"ready":0,"ejected":0,"draining":0},"slots":{"total":0,"in_use":0},"waiting":0,"visitors":1,"oldest_wait_ms":0,"cold_starts":0,"last_cold_start_ms":0,"last_error":"it needs db, which is suspended (db upgrade)",
		"start":{"failed":2,"attempts":3},"instance_list":[],"config":{"idle_timeout":"5m0s"},"why":"min is 0","needed":0,"blocked_by":{"service":"db","suspended":true,"trouble":"it needs db, which is suspended (db upgrade)"}}`,
	"GET /usher/services/shop/decisions": `[
		{"time":"2026-03-04T12:27:30Z","from":0,"to":1,"reason":"0 in use, 1 waiting","inputs":{}},
		{"time":"2026-03-04T12:28:00Z","from":1,"to":0,"reason":"min is 0","inputs":{"in_use":0,"waiting":0}}]`,
	"GET /usher/services/api/logs": `[
		{"number":7,"time":"2026-03-04T12:29:59Z","instance":"i1","stream":"stdout","text":"listening on \u001b[1m21000"},
		{"number":8,"time":"2026-03-04T12:30:00Z","instance":"i2","stream":"stderr","text":"slow query"}]`,
	"GET /usher/services/hello": `{"name":"hello","backend":"process","state":"awake","target":1,"min":0,"max":1,"instances":{"starting":1,"ready":1,"ejected":0,"draining":0},"slots":{"total":10,"in_use":1},"waiting":0,"oldest_wait_ms":0,"cold_starts":0,"last_cold_start_ms":0,"last_error":null,"instance_list":[],"config":{},
		"origin":"run_time","owner":"ann","revision":2,"made":{"name":"hello","origin":"run_time","owner":"ann","revision":3,"etag":"\"3-abc\"","definition":{"template":"web","params":{"team":"red","name":"x\u001b[2J"},"hosts":["hello.example.com"]},
		"by":"ann","at":"2026-03-04T12:20:00Z","in_force":2,"fell_back":{"revision":3,"reason":"exit status 3\nno such file","at":"2026-03-04T12:21:00Z"},"replacing":true,"state":"awake"}}`,
	"GET /usher/services/hello/revisions": `[
		{"number":3,"by":"ann","at":"2026-03-04T12:20:00Z","definition":{"template":"web","params":{"team":"red","name":"x\u001b[2J"},"hosts":["hello.example.com"]}},
		{"number":2,"by":"the admin API","at":"2026-03-04T10:00:00Z","definition":{"template":"web","params":{"team":"red"},"fallback":"1m0s"}},
		{"number":1,"by":"the admin API","at":"2026-03-02T12:00:00Z","definition":{"service":{"backend":{"type":"process","env":{"TOKEN":"***"}}}}}]`,
	"GET /usher/services/old":          `{"name":"old","origin":"run_time","revision":1,"etag":"\"1-abc\"","definition":{"template":"gone"},"by":"the admin API","at":"2026-03-01T12:00:00Z","trouble":"there is no template gone"}`,
	"POST /usher/services/api/wake":    `{"name":"api","state":"awake"}`,
	"POST /usher/services/api/sleep":   `{"name":"api","state":"asleep"}`,
	"POST /usher/services/blog/sleep":  `{"name":"blog","state":"asleep","waiting":4,"visitors":1}`,
	"POST /usher/services/api/suspend": `{"name":"api","state":"suspended"}`,
}

// scriptedEvents is the event stream: what comes first, and after a reload.
var scriptedEvents = []string{
	"event: service\ndata: {\"name\":\"api\",\"state\":\"asleep\"}\n\n: alive\n\n" +
		"event: target\ndata: {\"service\":\"api\",\"from\":0,\"to\":1,\"reason\":\"0 in use, 1 waiting\",\"time\":\"2026-03-04T12:00:00Z\"}\n\n" +
		"event: state\ndata: {\"service\":\"blog\",\"from\":\"waking\",\"to\":\"failing\",\"time\":\"2026-03-04T12:00:00Z\"}\n\nevent: bye\ndata: {}\n\n",
	"event: service\ndata: {\"name\":\"api\",\"state\":\"asleep\"}\n\n" +
		"event: instance\ndata: {\"service\":\"api\",\"id\":\"i1\",\"address\":\"127.0.0.1:21000\",\"state\":\"ready\",\"revision\":\"r1\",\"time\":\"2026-03-04T12:00:01Z\"}\n\n" +
		"event: instance\ndata: {\"service\":\"api\",\"id\":\"i0\",\"state\":\"ended\",\"revision\":\"r1\",\"time\":\"2026-03-04T12:00:02Z\"}\n\n",
}

// scriptedLines is the stream of lines: what comes first, and after a reload.
var scriptedLines = []string{
	"event: line\ndata: {\"number\":7,\"time\":\"2026-03-04T12:29:59Z\",\"instance\":\"i1\",\"stream\":\"stdout\",\"text\":\"one \\u001b[2J\"}\n\n: alive\n\nevent: bye\ndata: {}\n\n",
	"event: line\ndata: {\"number\":8,\"time\":\"2026-03-04T12:30:00Z\",\"instance\":\"i1\",\"stream\":\"stderr\",\"text\":\"two\"}\n\nevent: bye\ndata: {}\n\n",
}

func scripted(t *testing.T) (address string, bodies *[]string) {
	bodies = new([]string)
	streams, lines := 0, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*bodies = append(*bodies, string(body))
		call := r.Method + " " + r.URL.Path
		switch answer, ok := scriptedAdmin[call]; {
		case r.URL.Query().Has("follow") && lines < len(scriptedLines):
			if after := r.URL.Query().Get("after"); lines == 1 && after != "7" {
				t.Errorf("asked for lines after %q, which were printed up to 7", after)
			}
			lines++
			_, _ = io.WriteString(w, scriptedLines[lines-1])
		case r.URL.Query().Has("follow"):
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"there is no service api"}`)
		case ok:
			_, _ = io.WriteString(w, answer)
		case call == "GET /usher/services/blog":
			_, _ = io.WriteString(w, `{"name":"blog","state":"failing","last_error":"exit status 1"}`)
		case call == "GET /usher/events" && streams < len(scriptedEvents):
			streams++
			_, _ = io.WriteString(w, scriptedEvents[streams-1])
		case call == "POST /usher/services/events/wake" || call == "GET /usher/events":
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"error":"service events is suspended: resume it first"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprintf(w, `{"error":"there is no service %s"}`, strings.Split(r.URL.Path+"//", "/")[3])
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), bodies
}

// command runs `caddy usher` with these arguments.
func command(address string, args ...string) (stdout, stderr string, err error) {
	cmd := &cobra.Command{Use: "usher", SilenceUsage: true}
	commands{aDayNow}.add(cmd)
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(append(args, "--address", address))
	err = cmd.Execute()
	return out.String(), errs.String(), err
}

// Each file has a command line, and below it what it prints.
func TestCommandsPrintWhatTheyPrintedBefore(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/command/*.golden")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".golden"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			line, want, _ := strings.Cut(string(b), "\n")
			address, _ := scripted(t)
			stdout, stderr, err := command(address, strings.Fields(strings.TrimPrefix(line, "$ caddy usher "))...)
			got := stdout
			if stderr != "" {
				got += "-- stderr\n" + strings.ReplaceAll(stderr, address, "ADDRESS")
			}
			if err != nil {
				got += "-- error: " + strings.ReplaceAll(err.Error(), address, "ADDRESS") + "\n"
			}
			if strings.ContainsAny(got, "\x1b\u009b\u202e") {
				t.Errorf("a terminal would obey: %q", got)
			}
			if *update {
				if err := os.WriteFile(file, []byte(line+"\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("want\n%s\ngot\n%s", want, got)
			}
		})
	}
}

func TestTheReasonOfASuspensionIsSent(t *testing.T) {
	t.Parallel()
	address, bodies := scripted(t)
	if _, stderr, err := command(address, "suspend", "api", "--reason", `it's "broken"`); err != nil {
		t.Fatal(err, stderr)
	}
	if want := `{"reason":"it's \"broken\""}`; len(*bodies) != 1 || (*bodies)[0] != want {
		t.Errorf("sent %q", *bodies)
	}
}

func TestACommandWithoutCaddySaysSo(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(nil)
	srv.Close()
	_, stderr, err := command(srv.Listener.Addr().String(), "list")
	if err == nil || !strings.Contains(stderr, "does not answer") || !strings.Contains(stderr, "--address") {
		t.Errorf("%v, %q", err, stderr)
	}
}

func TestDurationsHaveTheDigitsThatMatter(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0ms", 64 * time.Millisecond: "64ms", 3100 * time.Millisecond: "3.1s", 12345 * time.Millisecond: "12s",
		72 * time.Second: "1m12s", 3 * time.Hour: "3h", 10 * time.Minute: "10m", 50 * time.Hour: "2d",
	} {
		if got := hub.Short(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
