package marathonsim_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// The tests look at the simulator from outside: over plain HTTP, with JSON
// written by hand after Marathon's documents, and at processes and ports.

var appBinary string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "marathonsim-test-")
	if err != nil {
		panic(err)
	}
	appBinary = filepath.Join(dir, "app")
	if out, err := exec.Command("go", "build", "-o", appBinary, "github.com/caddy-usher/usher/test/app").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// quick is a configuration that takes none of the time which Marathon takes,
// so that a test waits for nothing but processes.
func quick() marathonsim.Config {
	return marathonsim.Config{
		OfferInterval: 5 * time.Millisecond, ReviveInterval: time.Millisecond,
		LaunchDelay: marathonsim.Range{Min: 1, Max: 2}, EventDelay: marathonsim.Range{Max: 5 * time.Millisecond},
		ElectionGap: marathonsim.Range{Min: 20 * time.Millisecond, Max: 40 * time.Millisecond},
		NodeRestart: 100 * time.Millisecond, AbdicateDelay: 10 * time.Millisecond,
	}
}

type sim struct {
	*marathonsim.Sim
	t *testing.T
}

func start(t *testing.T, cfg marathonsim.Config) *sim {
	t.Helper()
	t.Parallel()
	s, err := marathonsim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d", s.Seed)
	t.Cleanup(func() {
		if t.Failed() {
			entries := s.Journal(0)
			for _, e := range entries[max(0, len(entries)-200):] {
				t.Logf("%s %-10s %s %s: %s", e.Time.Format("05.000"), e.Kind, e.App, e.ID, e.Text)
			}
		}
		s.Close()
	})
	return &sim{s, t}
}

// An answer is what came back, read as JSON without a type.
type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// at reads a value by its path: names and indices, joined by dots.
func (a answer) at(path string) any {
	a.t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		a.t.Fatalf("not JSON: %v\n%s", err, a.body)
	}
	return at(v, path)
}

func at(v any, path string) any {
	if path == "" {
		return v
	}
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			var n int
			if _, err := fmt.Sscanf(name, "%d", &n); err != nil || n >= len(x) {
				return nil
			}
			v = x[n]
		default:
			return nil
		}
	}
	return v
}

func (a answer) str(path string) string { s, _ := a.at(path).(string); return s }
func (a answer) num(path string) int    { f, _ := a.at(path).(float64); return int(f) }
func (a answer) list(path string) []any { l, _ := a.at(path).([]any); return l }

var client = &http.Client{
	Timeout:       20 * time.Second,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// try sends a request to a node, counted from 0.
func (s *sim) try(node int, method, path, body string, headers ...string) (answer, error) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URLs()[node]+path, bytes.NewReader([]byte(body)))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{s.t, resp.StatusCode, resp.Header, string(data)}, err
}

func (s *sim) call(method, path, body string, headers ...string) answer {
	s.t.Helper()
	a, err := s.try(0, method, path, body, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (s *sim) get(path string) answer { s.t.Helper(); return s.call("GET", path, "") }

// want sends a request and insists on the status.
func (s *sim) want(status int, method, path, body string) answer {
	s.t.Helper()
	a := s.call(method, path, body)
	if a.status != status {
		s.t.Fatalf("%s %s %s: status %d, want %d\n%s", method, path, body, a.status, status, a.body)
	}
	return a
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	harness.Eventually(t, 15*time.Second, cond, "%s", what)
}

// create posts an app that runs the instance program; extra are further
// members of its JSON.
func (s *sim) create(id string, instances int, extra string) {
	s.t.Helper()
	s.createCmd(id, "exec "+appBinary, instances, extra)
}

func (s *sim) createCmd(id, cmd string, instances int, extra string) {
	s.t.Helper()
	if extra != "" {
		extra = "," + extra
	}
	s.want(201, "POST", "/v2/apps", fmt.Sprintf(`{"id":%q,"cmd":%q,"instances":%d,"cpus":0.1,"mem":32%s}`, id, cmd, instances, extra))
}

// settled waits until the app has n running tasks and no deployment.
func (s *sim) settled(id string, n int) answer {
	s.t.Helper()
	var a answer
	eventually(s.t, fmt.Sprintf("%s has %d tasks and no deployment", id, n), func() bool {
		a = s.get("/v2/apps" + id)
		return a.status == 200 && a.num("app.tasksRunning") == n && len(a.list("app.deployments")) == 0 &&
			len(running(a)) == n && s.upToDate(a)
	})
	return a
}

// upToDate reports whether all tasks that a shows running are to run. What can be
// read of a task may be late: a stopped one may still be shown while its
// successor is not shown yet, and then the number is right and the tasks are not.
func (s *sim) upToDate(a answer) bool {
	stays := map[any]bool{}
	for _, r := range s.Tasks() {
		stays[r.ID] = r.Goal == "Running" && r.State == "TASK_RUNNING"
	}
	return !slices.ContainsFunc(running(a), func(t map[string]any) bool { return !stays[t["id"]] })
}

// renewed is settled after a change that replaces all tasks. What can be read
// of a task may be late, and only that they are others shows that it was seen.
func (s *sim) renewed(id string, before answer) answer {
	s.t.Helper()
	n := len(running(before))
	var a answer
	eventually(s.t, fmt.Sprintf("%s has %d other tasks", id, n), func() bool {
		a = s.settled(id, n)
		return !slices.ContainsFunc(running(a), func(t map[string]any) bool {
			return slices.ContainsFunc(running(before), func(o map[string]any) bool { return o["id"] == t["id"] })
		})
	})
	return a
}

// running are the tasks of an app's JSON that are in state running.
func running(a answer) []map[string]any {
	var out []map[string]any
	for _, t := range a.list("app.tasks") {
		if m := t.(map[string]any); m["state"] == "TASK_RUNNING" {
			out = append(out, m)
		}
	}
	return out
}

func endpoint(task map[string]any) string {
	return net.JoinHostPort(task["host"].(string), fmt.Sprint(at(task, "ports.0")))
}

// serves waits until the address answers.
func serves(t *testing.T, address string) {
	t.Helper()
	eventually(t, address+" serves", func() bool {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
}

func refuses(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err != nil
}

// A stream is an open event stream, with what has come so far.
type stream struct {
	status int
	header http.Header
	conn   net.Conn

	mu     sync.Mutex
	events []map[string]any
	raw    bytes.Buffer
	ended  bool
}

// attached is how many streams were attached so far.
func (s *sim) attached() int {
	n := 0
	for _, e := range s.Journal(0) {
		if e.Kind == "event" && e.Text == "event_stream_attached" {
			n++
		}
	}
	return n
}

// listen opens an event stream at a node, byte by byte as it comes.
func (s *sim) listen(node int, query string) *stream {
	s.t.Helper()
	host := strings.TrimPrefix(s.URLs()[node], "http://")
	before := s.attached()
	conn, err := net.Dial("tcp", host)
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v2/events%s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", query, host)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	st := &stream{status: resp.StatusCode, header: resp.Header, conn: conn}
	if resp.Close {
		st.header.Set("Connection", "close") // net/http takes it out
	}
	if resp.StatusCode != 200 {
		conn.Close()
		return st
	}
	// As with Marathon, the answer is out before the stream is attached.
	eventually(s.t, "the stream is attached", func() bool { return s.attached() > before })
	done := make(chan struct{})
	s.t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		for {
			line, err := r.ReadString('\n')
			st.mu.Lock()
			st.raw.WriteString(line)
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				var e map[string]any
				if json.Unmarshal([]byte(data), &e) == nil {
					st.events = append(st.events, e)
				}
			}
			st.ended = st.ended || err != nil
			st.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return st
}

// of are the events of a type, in the order in which they came.
func (st *stream) of(kind string) []map[string]any {
	st.mu.Lock()
	defer st.mu.Unlock()
	var out []map[string]any
	for _, e := range st.events {
		if e["eventType"] == kind {
			out = append(out, e)
		}
	}
	return out
}

func (st *stream) text() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.raw.String()
}

func (st *stream) isEnded() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.ended
}

// leader is the number of the leading node.
func (s *sim) leader() int {
	s.t.Helper()
	n := -1
	eventually(s.t, "there is a leader", func() bool {
		for i := range s.URLs() {
			a, err := s.try(i, "GET", "/v2/leader", "")
			if err != nil || a.status != 200 {
				continue
			}
			for k, u := range s.URLs() {
				if u == "http://"+a.str("leader") {
					n = k
				}
			}
			return n >= 0
		}
		return false
	})
	return n
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}
