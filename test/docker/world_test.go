//go:build linux

package docker

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/test/docker/engine"
	"github.com/caddy-usher/usher/test/harness"
)

// staticApp builds the test app so that it runs in an empty image.
func staticApp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usher-app-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	app := filepath.Join(dir, "app")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", app, "github.com/caddy-usher/usher/test/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the app: %v\n%s", err, out)
	}
	return app
}

// world is a Caddy beside an engine.
type world struct {
	*harness.Caddy
	t *testing.T
	e *engine.Engine
}

func newWorld(t *testing.T, s *shared) *world {
	t.Helper()
	e := s.get(t)
	return &world{Caddy: harness.New(t), t: t, e: e}
}

// journal has the app in a container write the journal of this Caddy.
func (w *world) journal(cfg *container.Config, host *container.HostConfig) {
	cfg.Env = append(cfg.Env, "APP_JOURNAL=/journal/journal")
	host.Binds = append(host.Binds, w.Dir+":/journal")
}

// config is a site with one service on the engine.
func (w *world) config(backend, options string, more ...string) harness.Config {
	return w.configAt(w.e.Host(), backend, options, more...)
}

// configAt is config for an engine that is reached at a host.
func (w *world) configAt(host, backend, options string, more ...string) harness.Config {
	lines := append([]string{"backend docker " + backend + " {\n\t" + strings.ReplaceAll(options, "\n", "\n\t") + "\n}", "wait_timeout 20s"}, more...)
	return harness.Config{
		Usher: "docker {\n\thost " + host + "\n}",
		Site:  harness.Usher("web", lines...),
	}
}

// spec is a container that a test makes.
type spec struct {
	name    string
	image   string
	args    []string
	env     []string
	labels  map[string]string
	config  func(*container.Config, *container.HostConfig)
	publish bool
}

// create makes a container that does not run.
func (w *world) create(s spec) string {
	w.t.Helper()
	id, err := w.tryCreate(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) tryCreate(s spec) (string, error) {
	if s.image == "" {
		s.image = image
	}
	cfg := &container.Config{Image: s.image, Cmd: s.args, Env: s.env, Labels: s.labels}
	host := &container.HostConfig{}
	if s.publish {
		host.PortBindings = network.PortMap{network.MustParsePort("8080/tcp"): {{}}}
	}
	if s.config != nil {
		s.config(cfg, host)
	}
	res, err := w.e.Client.ContainerCreate(w.t.Context(), client.ContainerCreateOptions{Name: s.name, Config: cfg, HostConfig: host})
	return res.ID, err
}

// inspect looks at a container.
func (w *world) inspect(id string) container.InspectResponse {
	w.t.Helper()
	res, err := w.e.Client.ContainerInspect(w.t.Context(), id, client.ContainerInspectOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Container
}

// await waits until something holds.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	if !harness.WaitFor(20*time.Second, ok) {
		w.t.Fatalf("not within 20s: %s", what)
	}
}

// state is the state of a container.
func (w *world) state(id string) container.ContainerState { return w.inspect(id).State.Status }

// running returns the ids of the containers that run and are not paused.
func (w *world) running(labels ...string) []string {
	w.t.Helper()
	return w.inState(container.StateRunning, labels...)
}

func (w *world) inState(state container.ContainerState, labels ...string) []string {
	w.t.Helper()
	all, err := w.e.Containers(w.t.Context(), labels...)
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for _, c := range all {
		if c.State == state {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// ok fails the test unless the answer is a 200.
func (w *world) ok(res harness.Response) {
	w.t.Helper()
	if res.Err != nil || res.Status != 200 {
		w.t.Fatalf("status %d, error %v: %s", res.Status, res.Err, res.Body)
	}
}

// ask asks a URL once, over a connection of its own.
func (w *world) ask(url string) harness.Response {
	w.t.Helper()
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	start := time.Now()
	res, err := h.Get(url)
	if err != nil {
		return harness.Response{Err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return harness.Response{Status: res.StatusCode, Header: res.Header, Body: string(body), Err: err, Took: time.Since(start)}
}

// composeLabels are what Compose sets.
func composeLabels(project, service string, number int) map[string]string {
	return map[string]string{
		"com.docker.compose.project": project, "com.docker.compose.service": service,
		"com.docker.compose.container-number": fmt.Sprint(number), "com.docker.compose.oneoff": "False",
	}
}
