//go:build linux

package docker

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/test/docker/engine"
	"github.com/caddy-usher/usher/test/harness"
)

var wanted = flag.Bool("docker", false, "run the tests, on a real Docker Engine and a real Podman")

func TestMain(m *testing.M) {
	flag.Parse()
	if !*wanted {
		fmt.Println("skipped: the tests on a real Docker Engine run with the flag -docker")
		return
	}
	if why := engine.Missing(false); why != "" {
		fmt.Println("skipped: no Docker Engine can run here:", why)
		return
	}
	harness.Main(suite{m})
}

// suite ends the engines after the tests.
type suite struct{ m *testing.M }

func (s suite) Run() int {
	code := s.m.Run()
	for _, e := range []*shared{&docker, &podman} {
		if e.engine != nil {
			if err := e.engine.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "closing the engine:", err)
				code = 1
			}
		}
	}
	engine.End()
	if len(figures.lines) > 0 {
		fmt.Println("figures:")
	}
	for _, line := range figures.lines {
		fmt.Println("  " + line)
	}
	return code
}

// shared is an engine that all tests use, started when it is first needed. No
// test runs beside another: they stop the engine, and they measure.
type shared struct {
	podman bool
	once   sync.Once
	engine *engine.Engine
	err    error
}

var docker, podman = shared{}, shared{podman: true}

func (s *shared) name() string {
	if s.podman {
		return "Podman"
	}
	return "Docker"
}

// get returns the engine, without any container.
func (s *shared) get(t *testing.T) *engine.Engine {
	t.Helper()
	if why := engine.Missing(s.podman); why != "" {
		t.Skip("this engine cannot run here: " + why)
	}
	s.once.Do(func() {
		if s.engine, s.err = engine.Start(s.podman); s.err == nil {
			s.err = s.engine.Import(t.Context(), image, staticApp(t), "EXPOSE 8080", "ENV PORT=8080", "ENV HOST=0.0.0.0")
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	if err := s.engine.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the engine's log:\n%s", s.engine.Log(5))
		}
	})
	return s.engine
}

// image is the image of the test app.
const image = "usher-test/app:1"

// figures are what was measured, for the end of the run.
var figures struct {
	sync.Mutex
	lines []string
}

// figure notes what a test has measured.
func figure(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	figures.Lock()
	defer figures.Unlock()
	figures.lines = append(figures.lines, strings.TrimPrefix(t.Name(), "Test")+": "+line)
}
