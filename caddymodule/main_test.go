package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/goleak"

	_ "github.com/caddy-usher/usher/async/file"
	_ "github.com/caddy-usher/usher/caddymodule/admin"
	"github.com/caddy-usher/usher/caddymodule/hub"
	_ "github.com/caddy-usher/usher/caddymodule/liveview"
	"github.com/caddy-usher/usher/test/harness"
)

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-caddymodule")
	if err != nil {
		panic(err)
	}
	storageRoot = filepath.Join(dir, "storage")
	_ = os.Setenv("XDG_DATA_HOME", dir)
	_ = os.Setenv("XDG_CONFIG_HOME", dir)
	code := m.Run()
	_ = os.RemoveAll(dir)
	if code == 0 {
		http.DefaultClient.CloseIdleConnections()
		if err := goleak.Find(caddysOwn()...); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

// caddysOwn are the goroutines of Caddy that outlive what began them: the sweeper
// of the hosts of dynamic upstreams lives as long as the process, and what keeps
// a lock of the storage fresh notices some seconds later that it was given back.
func caddysOwn() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
	}
}

// storageRoot has the storages of all tests. It stays until the end of the last
// one: the configuration in force may be that of a test that is just over.
var storageRoot string

// storageOf returns the directory that all configurations of a test share.
func storageOf(t *testing.T) string { return filepath.Join(storageRoot, filepath.FromSlash(t.Name())) }

// logBuffer collects what a configuration logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}
func (*logBuffer) Close() error { return nil }

// entries returns the lines that have this message.
func (b *logBuffer) entries(msg string) []map[string]any {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []map[string]any
	for line := range strings.Lines(b.buf.String()) {
		var e map[string]any
		if json.Unmarshal([]byte(line), &e) == nil && e["msg"] == msg {
			all = append(all, e)
		}
	}
	return all
}

var logBuffers sync.Map

type testLog struct {
	Name string `json:"name,omitempty"`
}

func (testLog) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test", New: func() caddy.Module { return new(testLog) }}
}
func (l testLog) String() string    { return l.Name }
func (l testLog) WriterKey() string { return "test:" + l.Name }
func (l testLog) OpenWriter() (io.WriteCloser, error) {
	return logsOf(l.Name), nil
}

// logNames are the names of the logs of tests. Caddy's default logger keeps
// the last writer that it was given, so every run of a test has its own.
var (
	logNames sync.Map
	logCount atomic.Int64
)

func logName(t *testing.T) string {
	if name, ok := logNames.Load(t); ok {
		return name.(string)
	}
	name, _ := logNames.LoadOrStore(t, fmt.Sprintf("%s#%d", t.Name(), logCount.Add(1)))
	return name.(string)
}

func logsOf(name string) *logBuffer {
	v, _ := logBuffers.LoadOrStore(name, new(logBuffer))
	return v.(*logBuffer)
}

func init() {
	caddy.RegisterModule(testLog{})
}

// config is a configuration: provisioned, and started on request. Many can
// live at a time, as two do during a reload.
type config struct {
	t      *testing.T
	ctx    caddy.Context
	cancel context.CancelFunc
	app    *App
	server *caddyhttp.Server
	front  *httptest.Server
	once   sync.Once
	over   atomic.Bool
}

// provisioning and cleaning up is one at a time, as in Caddy: logs and
// certificates are the whole process's.
var provisioning sync.Mutex

// tryProvision provisions a Caddyfile or JSON apps.
func tryProvision(t *testing.T, text string) (*config, error) {
	t.Helper()
	var doc struct {
		Apps caddy.ModuleMap `json:"apps"`
	}
	if strings.HasPrefix(strings.TrimSpace(text), `{"`) {
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatal(err)
		}
	} else {
		adapted, err := adapt(text)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(adapted, &doc); err != nil {
			t.Fatal(err)
		}
	}
	provisioning.Lock()
	defer provisioning.Unlock()
	cfg := &caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{
			WriterRaw:  mustJSON(map[string]string{"output": "test", "name": logName(t)}),
			EncoderRaw: json.RawMessage(`{"format":"json"}`), Level: "DEBUG",
		}}}},
		StorageRaw: mustJSON(map[string]string{"module": "file_system", "root": storageOf(t)}),
	}
	base, err := caddy.ProvisionContext(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.AppsRaw = doc.Apps
	if cfg.AppsRaw == nil {
		cfg.AppsRaw = caddy.ModuleMap{}
	}
	c := &config{t: t}
	ctx, cancel := caddy.NewContext(base)
	c.ctx = ctx
	c.cancel = func() {
		if c.over.Swap(true) {
			return
		}
		provisioning.Lock()
		defer provisioning.Unlock()
		cancel()
	}
	for name := range doc.Apps {
		if _, err := c.ctx.App(name); err != nil {
			cancel()
			return nil, err
		}
	}
	if a, err := c.ctx.AppIfConfigured("usher"); err == nil {
		c.app = a.(*App)
	}
	if a, err := c.ctx.AppIfConfigured("http"); err == nil {
		for _, s := range a.(*caddyhttp.App).Servers {
			c.server = s
		}
	}
	t.Cleanup(c.end)
	return c, nil
}

func provision(t *testing.T, text string) *config {
	t.Helper()
	c, err := tryProvision(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start puts the configuration in force and serves it.
func start(t *testing.T, text string) *config {
	t.Helper()
	c := provision(t, text)
	if err := c.app.Start(); err != nil {
		t.Fatal(err)
	}
	return c.serve()
}

func (c *config) serve() *config {
	c.front = httptest.NewServer(c.server)
	return c
}

// end takes the configuration out of force, as Caddy does: the server first
// stops to listen, then everything is cleaned up.
func (c *config) end() {
	c.once.Do(func() {
		if c.front != nil {
			c.front.CloseClientConnections()
			c.front.Close()
		}
		c.cancel()
	})
}

func adapt(text string) ([]byte, error) {
	b, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return b, err
}

// site is a Caddyfile with one site.
func site(body string) string {
	return "{\n\tauto_https off\n}\n:80 {\n" + body + "\n}\n"
}

// usher is a directive that defines the service of a fleet.
func (f *fleet) usher(options ...string) string {
	return "usher " + f.name + " {\n" + f.definition(options...) + "\n}\n"
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	err    error
}

func (c *config) do(method, path, body string, header ...string) reply {
	return c.begin(method, path, body, header...)()
}

// begin sends a request and returns what waits for the answer.
func (c *config) begin(method, path, body string, header ...string) func() reply {
	c.t.Helper()
	return c.beginWith(context.Background(), method, path, body, header...)
}

func (c *config) beginWith(ctx context.Context, method, path, body string, header ...string) func() reply {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.front.URL+path, rd)
	if err != nil {
		c.t.Fatal(err)
	}
	for k := 0; k+1 < len(header); k += 2 {
		r.Header.Set(header[k], header[k+1])
	}
	done := make(chan reply, 1)
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	go func() {
		defer cancel()
		resp, err := client.Do(r)
		if err != nil {
			done <- reply{err: err}
			return
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		done <- reply{resp.StatusCode, resp.Header, string(b), err}
	}()
	return func() reply {
		c.t.Helper()
		select {
		case r := <-done:
			return r
		case <-time.After(2 * patience):
			c.t.Fatal("no answer")
			return reply{}
		}
	}
}

func (c *config) get(path string, header ...string) reply { return c.do("GET", path, "", header...) }

// service returns the running service of that name.
func serving(t *testing.T, name string) *hub.Service {
	t.Helper()
	h := hub.Latest.Load()
	if h == nil {
		t.Fatal("no hub")
	}
	s := h.Service(name)
	if s == nil {
		t.Fatalf("no service %s", name)
	}
	return s
}

// eventually polls: for what no event tells a test.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	harness.Eventually(t, patience, cond, "%s", what)
}

// waiting waits until so many requests are in the queue.
func (f *fleet) waiting(n int) {
	f.t.Helper()
	eventually(f.t, "the queue", func() bool {
		h := hub.Latest.Load()
		s := h.Service(f.name)
		return s != nil && s.Reserver.Stats().Waiting == n
	})
}

// ready waits until so many instances take requests.
func (f *fleet) ready(n int) {
	f.t.Helper()
	eventually(f.t, "readiness", func() bool {
		s := hub.Latest.Load().Service(f.name)
		return s != nil && s.Reserver.Stats().Open == n
	})
}
