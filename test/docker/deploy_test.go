//go:build linux

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/test/docker/engine"
	"github.com/caddy-usher/usher/test/harness"
)

const deploy = "../../deploy/docker"

// scratch builds the image of Dockerfile.scratch as its comment says, once.
var scratch = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "usher-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "caddy"), "github.com/caddy-usher/usher/test/caddy")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, out)
	}
	certs, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		certs = []byte("# none here\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-certificates.crt"), certs, 0o644); err != nil {
		return err
	}
	for _, name := range []string{"Caddyfile", "Dockerfile.scratch"} {
		text, err := os.ReadFile(filepath.Join(deploy, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "data", "caddy"), 0o755); err != nil {
		return err
	}
	return buildImage(docker.engine, dir, "Dockerfile.scratch", "caddy-usher")
})

// buildImage builds an image of a directory.
func buildImage(e *engine.Engine, dir, dockerfile, tag string) error {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name, _ = filepath.Rel(dir, path)
		if err := w.WriteHeader(h); err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	res, err := e.Client.ImageBuild(context.Background(), &archive, client.ImageBuildOptions{
		Dockerfile: dockerfile, Tags: []string{tag}, Remove: true, Version: build.BuilderV1,
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err == nil && strings.Contains(string(out), `"errorDetail"`) {
		err = fmt.Errorf("building the image: %s", out)
	}
	return err
}

// composed is a project that docker-compose has started, of a compose file of
// deploy/docker.
type composed struct {
	*world
	file, port string
	env        []string
}

// compose runs docker-compose on a compose file. Version 1 does not know a name
// in the file.
func (w *world) compose(name string, change func(string) string) *composed {
	w.t.Helper()
	if _, err := exec.LookPath("docker-compose"); err != nil {
		w.t.Skip("there is no docker-compose")
	}
	text, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	rest := strings.Replace(string(text), "name: usher\n", "version: \"2.4\"\n", 1)
	if change != nil {
		rest = change(rest)
	}
	c := &composed{world: w, file: filepath.Join(dir, "compose.yml"), port: portOf(w.SpareAddr)}
	caddyfile, err := os.ReadFile(filepath.Join(deploy, "Caddyfile"))
	if err != nil {
		w.t.Fatal(err)
	}
	// Sooner than in the example.
	caddyfile = bytes.ReplaceAll(caddyfile, []byte("idle_timeout 30s"), []byte("idle_timeout 1s"))
	for path, text := range map[string]string{c.file: rest, filepath.Join(dir, "Caddyfile"): string(caddyfile)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	c.env = append(os.Environ(), "DOCKER_HOST="+w.e.Host(), "DOCKER_SOCKET="+w.e.Socket(), "DOCKER_GID=4711", "PORT="+c.port)
	if err := os.Chown(w.e.Socket(), 0, 4711); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chmod(w.e.Socket(), 0o660); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.run("down", "-v", "-t", "3") })
	c.run("up", "-d", "--no-build")
	return c
}

func (c *composed) run(args ...string) {
	c.t.Helper()
	cmd := exec.Command("docker-compose", append([]string{"-f", c.file, "-p", "usher"}, args...)...)
	cmd.Env = c.env
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Errorf("docker-compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// id returns the container of a service of the project.
func (c *composed) id(service string) string {
	c.t.Helper()
	all, err := c.e.Containers(c.t.Context(), "com.docker.compose.service="+service)
	if err != nil || len(all) != 1 {
		c.t.Fatalf("%d containers of %s, error %v", len(all), service, err)
	}
	return all[0].ID
}

func (c *composed) get(path string) harness.Response {
	c.t.Helper()
	return c.ask("http://127.0.0.1:" + c.port + path)
}

// sleepsAndWakes is the demonstration: both services fall asleep, and wake.
func (c *composed) sleepsAndWakes() {
	c.t.Helper()
	hello, whoami := c.id("hello"), c.id("whoami")
	var res harness.Response
	if !harness.WaitFor(30*time.Second, func() bool { res = c.get("/"); return res.Status == 200 }) {
		_, _ = c.e.Client.ContainerKill(c.t.Context(), c.id("caddy"), client.ContainerKillOptions{Signal: "ABRT"})
		time.Sleep(time.Second)
		c.t.Fatalf("the site does not serve: %d %s %v\n%s", res.Status, res.Body, res.Err, c.logs("caddy"))
	}
	for range 2 {
		c.await("one is stopped", func() bool { return c.state(hello) == container.StateExited })
		c.await("one is paused", func() bool { return c.state(whoami) == container.StatePaused })
		if res := c.get("/hello"); res.Status != 200 {
			c.t.Fatalf("hello: %d %s %v\n%s", res.Status, res.Body, res.Err, c.logs("caddy"))
		}
		if res := c.get("/"); res.Status != 200 {
			c.t.Fatalf("whoami: %d %s %v\n%s", res.Status, res.Body, res.Err, c.logs("caddy"))
		}
	}
}

func (c *composed) logs(service string) string {
	res, err := c.e.Client.ContainerLogs(c.t.Context(), c.id(service), client.ContainerLogsOptions{ShowStderr: true, ShowStdout: true, Tail: "400"})
	if err != nil {
		return err.Error()
	}
	defer res.Close()
	text, _ := io.ReadAll(res)
	return string(text)
}

// prepare makes the images that the compose files name. Nothing can be pulled
// here: the test app stands in for whoami.
func prepare(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, &docker)
	if err := scratch(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.e.Client.ImageTag(t.Context(), client.ImageTagOptions{Source: image, Target: "traefik/whoami:v1.11"}); err != nil {
		t.Fatal(err)
	}
	return w
}

// The compose file, with the image of Dockerfile.scratch: Caddy is not root, finds
// the network that it shares with the services, and wakes both.
func TestComposeFile(t *testing.T) {
	c := prepare(t).compose("compose.yml", nil)
	c.sleepsAndWakes()
	caddy := c.inspect(c.id("caddy"))
	if caddy.Config.User != "1000:1000" || !slices.Contains(caddy.HostConfig.GroupAdd, "4711") {
		t.Errorf("Caddy runs as %s with the groups %v", caddy.Config.User, caddy.HostConfig.GroupAdd)
	}
}

// The compose file with a socket proxy. A proxy of the test's own lets through
// what the options of that file say, and nothing else.
func TestLeastRights(t *testing.T) {
	w := prepare(t)
	text, err := os.ReadFile(filepath.Join(deploy, "compose.proxy.yml"))
	if err != nil {
		t.Fatal(err)
	}
	p := newSocketProxy(t, w.e.Socket(), string(text))
	w.create(spec{name: "usher_hello_1", labels: composeLabels("usher", "hello", 1)})
	w.create(spec{name: "usher_whoami_1", labels: composeLabels("usher", "whoami", 1)})
	w.Setenv("DOCKER_HOST", "tcp://"+p.addr)
	caddyfile, err := os.ReadFile(filepath.Join(deploy, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	site := strings.NewReplacer(":80 {", "http://"+w.Addr+" {", "idle_timeout 30s", "idle_timeout 1s", "backend docker compose usher/hello\n", "backend docker compose usher/hello {\n\t\t\taddress container\n\t\t}\n",
		"idle pause", "idle pause\n\t\t\taddress container", "{\n\tusher {", "{\n\tadmin "+w.AdminAddr+"\n\tusher {").Replace(string(caddyfile))
	w.Start(harness.Config{Raw: site})
	for range 2 {
		w.ok(w.Get("/hello"))
		w.ok(w.Get("/"))
		w.await("both sleep", func() bool { return len(w.running()) == 0 })
	}
	if refused := p.refused(); len(refused) > 0 {
		t.Errorf("calls that the file does not allow: %v", refused)
	}
	for _, call := range []string{"POST /v1.41/containers/create", "DELETE /v1.41/containers/x", "POST /v1.41/containers/x/exec", "GET /v1.41/images/json", "GET /v1.41/containers/x/archive", "POST /v1.41/containers/x/kill"} {
		method, path, _ := strings.Cut(call, " ")
		if p.allows(method, path) {
			t.Errorf("the file allows %s", call)
		}
	}
}

// socketProxy does what the socket proxy of the compose file does.
type socketProxy struct {
	addr  string
	rules map[string]*regexp.Regexp

	mu  sync.Mutex
	bad []string
}

var ruleOption = regexp.MustCompile(`(?m)^\s+- -allow(GET|POST|HEAD)=(.*)$`)

func newSocketProxy(t *testing.T, socket, compose string) *socketProxy {
	t.Helper()
	p := &socketProxy{rules: make(map[string]*regexp.Regexp)}
	for _, m := range ruleOption.FindAllStringSubmatch(compose, -1) {
		p.rules[m[1]] = regexp.MustCompile("^" + m[2] + "$")
	}
	if len(p.rules) != 3 {
		t.Fatalf("the compose file has %d rules", len(p.rules))
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "engine"})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	forward.Transport, forward.FlushInterval = transport, -1
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !p.allows(r.Method, r.URL.Path) {
			p.mu.Lock()
			p.bad = append(p.bad, r.Method+" "+r.URL.Path)
			p.mu.Unlock()
			http.Error(rw, "forbidden", http.StatusForbidden)
			return
		}
		forward.ServeHTTP(rw, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
		transport.CloseIdleConnections()
	})
	return p
}

func (p *socketProxy) allows(method, path string) bool {
	rule := p.rules[method]
	return rule != nil && rule.MatchString(path)
}

func (p *socketProxy) refused() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bad
}

// The multi-stage Dockerfile names the version of Caddy that go.mod does. It
// cannot be built here, because nothing can be pulled.
func TestDockerfileNamesTheVersionOfCaddy(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`caddyserver/caddy/v2 v(\S+)`).FindSubmatch(mod)
	text, err := os.ReadFile(filepath.Join(deploy, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FROM caddy:%s-builder AS builder\n", "xcaddy build v%s ", "FROM caddy:%s\n"} {
		if want = fmt.Sprintf(want, m[1]); !strings.Contains(string(text), want) {
			t.Errorf("the Dockerfile has no %q", want)
		}
	}
}

// Where Caddy is PID 1 of a container, what its processes leave behind is reaped.
func TestCaddyAsPID1ReapsZombies(t *testing.T) {
	w := prepare(t)
	dir := t.TempDir()
	caddyfile := ":80 {\n\tusher app {\n\t\tbackend process /app/app -fork\n\t\tidle_timeout 300ms\n\t}\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(caddyfile), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	app := staticApp(t)
	if err := os.Chmod(filepath.Dir(app), 0o755); err != nil {
		t.Fatal(err)
	}
	id := w.create(spec{name: "caddy", image: "caddy-usher", config: func(_ *container.Config, h *container.HostConfig) {
		h.Binds = []string{dir + "/Caddyfile:/etc/caddy/Caddyfile:ro", filepath.Dir(app) + ":/app:ro"}
	}})
	if _, err := w.e.Client.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	c := w.inspect(id)
	site := "http://" + net.JoinHostPort(c.NetworkSettings.Networks["bridge"].IPAddress.String(), "80")
	w.await("Caddy serves", func() bool { return w.ask(site).Status == 200 })
	for range 3 {
		w.ok(w.ask(site))
		time.Sleep(700 * time.Millisecond)
	}
	w.await("no zombie is left", func() bool {
		top, err := w.e.Client.ContainerTop(t.Context(), id, client.ContainerTopOptions{Arguments: []string{"-eo", "pid,stat,args"}})
		if err != nil {
			return false
		}
		for _, p := range top.Processes {
			if strings.HasPrefix(p[1], "Z") {
				return false
			}
		}
		return len(top.Processes) == 1
	})
}
