package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// patience is how long a test waits for something that should happen soon.
const patience = 10 * time.Second

// scripted is an engine that does what a test tells it to: nothing happens to a
// container unless it is called for. It listens on a socket.
type scripted struct {
	t      *testing.T
	socket string

	mu         sync.Mutex
	containers map[string]*box
	made       int
	calls      []string
	rules      map[string]http.HandlerFunc // by method and path, without the version
	streams    map[chan string]bool
	removals   chan struct{} // not nil: a removal is answered when it is closed
	srv        *http.Server
}

// box is a container of a scripted engine.
type box struct {
	name, image  string
	labels       map[string]string
	state        string
	started      int // how often
	exit         int
	oom          bool
	memory       int64
	health       string
	restart      string
	stopRefusals int
	created      int64
}

func newScripted(t *testing.T) *scripted {
	t.Helper()
	s := &scripted{
		t: t, socket: filepath.Join(t.TempDir(), "s"), containers: make(map[string]*box),
		rules: make(map[string]http.HandlerFunc), streams: make(map[chan string]bool),
	}
	s.up()
	t.Cleanup(s.down)
	return s
}

func (s *scripted) up() {
	ln, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: s}
	s.mu.Lock()
	s.srv = srv
	s.mu.Unlock()
	go func() { _ = srv.Serve(ln) }()
}

// down ends the engine, and all connections to it.
func (s *scripted) down() {
	s.cutStreams()
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	srv.Close()
}

// cutStreams ends the event streams.
func (s *scripted) cutStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.streams {
		close(c)
		delete(s.streams, c)
	}
}

// on answers a call in a way of its own.
func (s *scripted) on(call string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h == nil {
		delete(s.rules, call)
	} else {
		s.rules[call] = h
	}
}

func (s *scripted) count(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		if strings.Contains(c, call) {
			n++
		}
	}
	return n
}

// add makes a container.
func (s *scripted) add(id string, b box) string {
	id = strings.Repeat("0", 64-len(id)) + id
	if b.state == "" {
		b.state = "created"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[id] = &b
	return id
}

// change changes a container, and tells it by events.
func (s *scripted) change(id string, do func(*box), events ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s.containers[id])
	for _, e := range events {
		s.tell(id, e)
	}
}

// tell sends an event. The lock is held.
func (s *scripted) tell(id, action string) {
	kind, attributes := "container", map[string]string{}
	if b := s.containers[id]; b != nil {
		attributes["name"] = b.name
	}
	if name, signal, ok := strings.Cut(action, "="); ok {
		action, attributes["signal"] = name, signal
	}
	text, _ := json.Marshal(map[string]any{"Type": kind, "Action": action, "Actor": map[string]any{"ID": id, "Attributes": attributes}})
	for c := range s.streams {
		select {
		case c <- string(text):
		default:
		}
	}
}

var version = regexp.MustCompile(`^/v[0-9.]+`)

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := version.ReplaceAllString(r.URL.Path, "")
	call := r.Method + " " + path
	s.mu.Lock()
	s.calls = append(s.calls, call)
	rule := s.rules[call]
	s.mu.Unlock()
	w.Header().Set("Api-Version", "1.41")
	if rule != nil {
		rule(w, r)
		return
	}
	switch {
	case path == "/_ping":
	case path == "/info":
		fmt.Fprint(w, `{}`)
	case path == "/events":
		s.events(w, r)
	case path == "/containers/json":
		s.list(w, r)
	case path == "/containers/create":
		s.create(w, r)
	case strings.HasPrefix(path, "/images/"):
		fmt.Fprint(w, `{"Id":"sha256:1"}`)
	default:
		s.container(w, r, strings.Split(strings.TrimPrefix(path, "/containers/"), "/"))
	}
}

func (s *scripted) events(w http.ResponseWriter, r *http.Request) {
	c := make(chan string, 64)
	s.mu.Lock()
	s.streams[c] = true
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case text, ok := <-c:
			if !ok {
				return
			}
			fmt.Fprintln(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func (s *scripted) list(w http.ResponseWriter, r *http.Request) {
	var filters struct{ Label map[string]bool }
	_ = json.Unmarshal([]byte(r.FormValue("filters")), &filters)
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for id, b := range s.containers {
		if !b.matches(filters.Label) {
			continue
		}
		all = append(all, map[string]any{"Id": id, "Names": []string{"/" + b.name}, "Labels": b.labels, "State": b.state, "Created": b.created})
	}
	_ = json.NewEncoder(w).Encode(all)
}

// matches reports whether a container has all of these labels, as key or as
// key=value.
func (b *box) matches(labels map[string]bool) bool {
	for label := range labels {
		key, value, exact := strings.Cut(label, "=")
		if has, ok := b.labels[key]; !ok || exact && has != value {
			return false
		}
	}
	return true
}

func (s *scripted) create(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Image  string
		Labels map[string]string
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	s.made++
	id := fmt.Sprintf("f%d", s.made)
	s.mu.Unlock()
	id = s.add(id, box{name: r.FormValue("name"), image: body.Image, labels: body.Labels})
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"Id":%q}`, id)
}

func (s *scripted) container(w http.ResponseWriter, r *http.Request, path []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := path[0]
	b := s.containers[id]
	if b == nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"message":"No such container: %s"}`, id)
		return
	}
	if r.Method == http.MethodDelete {
		delete(s.containers, id)
		s.tell(id, "destroy")
		if gate := s.removals; gate != nil {
			s.mu.Unlock()
			<-gate
			s.mu.Lock()
		}
		return
	}
	switch path[1] {
	case "json":
		_ = json.NewEncoder(w).Encode(b.inspect(id))
	case "start":
		b.state = "running"
		b.started++
		s.tell(id, "start")
		w.WriteHeader(http.StatusNoContent)
	case "stop":
		if b.stopRefusals > 0 {
			b.stopRefusals--
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"message":"container state improper"}`)
			return
		}
		b.state = "exited"
		s.tell(id, "die")
		w.WriteHeader(http.StatusNoContent)
	case "pause":
		b.state = "paused"
	case "unpause":
		b.state = "running"
	case "logs":
		_, _ = io.WriteString(w, "\x02\x00\x00\x00\x00\x00\x00\x0fthe last words\n")
	}
}

// inspect is what an inspection says of b.
func (b *box) inspect(id string) any {
	state := map[string]any{
		"Status": b.state, "Running": b.state == "running" || b.state == "paused", "Paused": b.state == "paused", "Restarting": b.state == "restarting",
		"ExitCode": b.exit, "OOMKilled": b.oom, "StartedAt": "0001-01-01T00:00:00Z",
	}
	if b.started > 0 {
		state["StartedAt"] = time.Unix(int64(b.started), 0).UTC().Format(time.RFC3339Nano)
	}
	if b.health != "" {
		state["Health"] = map[string]any{"Status": b.health}
	}
	networks := map[string]any{}
	if b.state == "running" || b.state == "paused" {
		networks["bridge"] = map[string]any{"NetworkID": "b", "IPAddress": fmt.Sprintf("172.17.0.%d", 2+len(b.name))}
	}
	return map[string]any{
		"Id": id, "Name": "/" + b.name, "Created": "2026-01-01T00:00:00Z", "State": state, "Image": "sha256:1",
		"Config":          map[string]any{"Image": b.image, "Labels": b.labels, "ExposedPorts": map[string]any{"80/tcp": map[string]any{}}},
		"HostConfig":      map[string]any{"NetworkMode": "bridge", "Memory": b.memory, "RestartPolicy": map[string]any{"Name": b.restart}},
		"NetworkSettings": map[string]any{"Networks": networks},
	}
}

// opened is a runner with its reports.
type opened struct {
	*runner
	t *testing.T

	mu      sync.Mutex
	reports []scaler.Report
	log     strings.Builder
}

func (o *opened) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

func (o *opened) logged(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(o.log.String(), text)
}

// open opens a backend on the engine.
func (s *scripted) open(service string, b Backend, dir ...string) *opened {
	s.t.Helper()
	b.Host = "unix://" + s.socket
	data := s.t.TempDir()
	if len(dir) > 0 {
		data = dir[0]
	}
	o := &opened{t: s.t}
	logger := slog.New(slog.NewTextHandler(o, nil))
	sc, err := provisioned(s.t, &b).Open(scaler.Env{
		Service: service, Revision: "r1", Logger: func() *slog.Logger { return logger },
		Host: &scaler.Host{DataDir: data, Local: func() scaler.LocalOptions { return scaler.LocalOptions{} }},
		Report: func(r scaler.Report) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.reports = append(o.reports, r)
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	o.runner = sc.(*runner)
	s.t.Cleanup(o.end)
	return o
}

func (o *opened) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := o.Close(ctx, time.Second); err != nil {
		o.t.Error(err)
	}
}

// await waits until a report is as wanted, among all that came, and returns it.
func (o *opened) await(what string, ok func(scaler.Report) bool) scaler.Report {
	o.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		o.mu.Lock()
		reports := slices.Clone(o.reports)
		o.mu.Unlock()
		for _, r := range slices.Backward(reports) {
			if ok(r) {
				return r
			}
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("not within %s: %s; the reports are %+v", patience, what, reports)
		}
	}
}

// forget forgets the reports so far.
func (o *opened) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reports = nil
}

func (o *opened) scale(n int, stop ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return o.Scale(ctx, scaler.Order{Instances: n, Stop: stop, StopTimeout: time.Second})
}

// up orders one instance, and returns it when it has an address.
func (o *opened) up() scaler.Instance {
	o.t.Helper()
	if err := o.scale(1); err != nil {
		o.t.Fatal(err)
	}
	r := o.await("an instance", func(r scaler.Report) bool {
		return len(r.Instances) == 1 && r.Instances[0].Address != "" && r.Instances[0].Phase != scaler.PhaseEnded
	})
	return r.Instances[0]
}

// failure orders an instance, and returns why it cannot be started: the order or
// a report says it.
func (o *opened) failure() *scaler.Failure {
	o.t.Helper()
	if err := o.scale(1); err != nil {
		return scaler.AsFailure(err)
	}
	var f *scaler.Failure
	o.await("a failure", func(r scaler.Report) bool {
		for _, i := range r.Instances {
			if i.Failure != nil {
				f = i.Failure
			}
		}
		return f != nil
	})
	return f
}

// ended waits for the end of an instance.
func (o *opened) ended(id string) scaler.Instance {
	o.t.Helper()
	var last scaler.Instance
	o.await("the end of "+id, func(r scaler.Report) bool {
		for _, i := range r.Instances {
			if i.ID == id && i.Phase == scaler.PhaseEnded {
				last = i
				return true
			}
		}
		return false
	})
	return last
}
