// Package harness runs the real Caddy with Usher in it, with real processes
// and real clients, and looks at it from outside only: through its listeners,
// its admin API, its log, and what the instances wrote about themselves.
//
// A test makes a Caddy with New, starts it with a Config, and asks it
// things. Everything ends with the test: an instance that is left over then
// is a failure.
package harness

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// maxCaddys is how many Caddys run at once, however many tests do: more
// would only make each other late.
const maxCaddys = 4

var (
	places   = make(chan struct{}, maxCaddys)
	together sync.Mutex // held while one test takes several places
)

// A Caddy is one installation of Caddy: a directory, ports of its own, and
// at most one running process. It can be started again after it has ended.
type Caddy struct {
	Dir       string // everything that this Caddy writes is in here
	Addr      string // host:port of the site
	TLSAddr   string // host:port for a site with TLS
	SpareAddr string // host:port that is not in use
	AdminAddr string // host:port of the admin API

	t      testing.TB
	bin    Binaries
	block  *block
	mark   string
	env    []string
	client *http.Client
	admin  *http.Client
	loads  atomic.Int64 // how many Loads there were

	attr *syscall.SysProcAttr // of the process, if it is a particular one
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// New makes a Caddy that is not started yet. When the test ends it is
// stopped, and what it leaves behind is reported and ended.
func New(t testing.TB) *Caddy {
	t.Helper()
	places <- struct{}{}
	t.Cleanup(func() { <-places })
	return install(t)
}

// Together makes several Caddys, as New makes one. A test that needs several
// makes them in one call: two tests that each wait for the next place would
// wait for each other.
func Together(t testing.TB, n int) []*Caddy {
	t.Helper()
	taken := min(n, maxCaddys)
	together.Lock()
	for range taken {
		places <- struct{}{}
	}
	together.Unlock()
	t.Cleanup(func() {
		for range taken {
			<-places
		}
	})
	var all []*Caddy
	for range n {
		all = append(all, install(t))
	}
	return all
}

// install makes a Caddy, for which there is a place.
func install(t testing.TB) *Caddy {
	t.Helper()
	bin := Build(t)

	// Not t.TempDir: its long name would leave too little of the 107 bytes
	// that the path of a unix socket may have.
	dir, err := os.MkdirTemp("", "usher-t-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := claimBlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.release)

	c := &Caddy{
		Dir:       dir,
		Addr:      local(b.base + portHTTP),
		TLSAddr:   local(b.base + portTLS),
		SpareAddr: local(b.base + portSpare),
		AdminAddr: local(b.base + portAdmin),
		t:         t,
		bin:       bin,
		block:     b,
		mark:      fmt.Sprintf("%s-%d", filepath.Base(dir), os.Getpid()),
	}
	for _, sub := range []string{"data", "config", "tmp", "www"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + dir,
		"XDG_DATA_HOME=" + filepath.Join(dir, "data"),
		"XDG_CONFIG_HOME=" + filepath.Join(dir, "config"),
		"TMPDIR=" + filepath.Join(dir, "tmp"),
		"SECRET_OF_CADDY=not for children",
	}
	c.client = newClient(nil)
	c.admin = newClient(nil)
	t.Cleanup(c.end)
	return c
}

// Setenv sets a variable of the environment in which Caddy starts.
func (c *Caddy) Setenv(key, value string) { c.env = append(c.env, key+"="+value) }

// Program has this Caddy run another program than the one of Build.
func (c *Caddy) Program(path string) { c.bin.Caddy = path }

// App is the path of the instance program.
func (c *Caddy) App() string { return c.bin.App }

// Path returns a path in the directory of this Caddy.
func (c *Caddy) Path(name string) string { return filepath.Join(c.Dir, name) }

// Open creates a file that a process waits for (-gate, /hold, -fail-health).
func (c *Caddy) Open(gate string) {
	c.t.Helper()
	if err := os.WriteFile(c.Path(gate), nil, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// Shut removes such a file again.
func (c *Caddy) Shut(gate string) {
	c.t.Helper()
	if err := os.Remove(c.Path(gate)); err != nil {
		c.t.Fatal(err)
	}
}

// Start starts Caddy and returns when it serves.
func (c *Caddy) Start(cfg Config) {
	c.t.Helper()
	if err := c.TryStart(cfg); err != nil {
		c.t.Fatal(err)
	}
}

// TryStart starts Caddy. The error of a Caddy that does not come up holds
// what it wrote.
func (c *Caddy) TryStart(cfg Config) error {
	log, err := os.OpenFile(c.logPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	before := len(c.RawLog())

	cmd := exec.Command(c.bin.Caddy, append([]string{"run"}, c.configArgs(cfg)...)...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = c.Dir, c.env, c.attr
	cmd.Stdout, cmd.Stderr = log, log
	if err := start(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	c.cmd, c.done = cmd, done

	serving := WaitFor(Slow(15*time.Second), func() bool {
		return strings.Contains(c.RawLog()[before:], "serving initial configuration") || !c.Running()
	})
	if !c.Running() {
		return fmt.Errorf("caddy ended with status %d:\n%s", c.ExitStatus(), c.RawLog()[before:])
	}
	if !serving {
		return errors.New("caddy does not come up")
	}
	return nil
}

// configArgs writes the configuration to a file and returns the arguments
// that name it.
func (c *Caddy) configArgs(cfg Config) []string {
	c.t.Helper()
	text := c.Caddyfile(cfg)
	name, args := "Caddyfile", []string{"--adapter", "caddyfile"}
	if isJSON(text) {
		name, args = "caddy.json", nil
	}
	if err := os.WriteFile(c.Path(name), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return append([]string{"--config", c.Path(name)}, args...)
}

func isJSON(text string) bool {
	// A Caddyfile may begin with a brace too, but not with a quoted key.
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), "{")
	return ok && strings.HasPrefix(strings.TrimSpace(rest), `"`)
}

// Reload loads another configuration as a user's POST /load does. When it
// returns the old configuration takes no new connections.
func (c *Caddy) Reload(cfg Config) error {
	text := c.Caddyfile(cfg)
	kind := "text/caddyfile"
	if isJSON(text) {
		kind = "application/json"
	}
	res := c.askAdmin(http.MethodPost, "/load", kind, text)
	if res.Err != nil {
		return res.Err
	}
	if res.Status != http.StatusOK {
		return errors.New(res.Body)
	}
	// Both configurations listen for a moment, and the kernel drops what it
	// has given to the listener that closes: a loss of Caddy's, on which no
	// test is to depend by chance.
	c.client.CloseIdleConnections()
	if !WaitFor(Slow(10*time.Second), func() bool { return listeners(c.block.base+portHTTP) <= 1 }) {
		return errors.New("the listener of the old configuration is still open")
	}
	return nil
}

// MustReload is Reload that may not fail.
func (c *Caddy) MustReload(cfg Config) {
	c.t.Helper()
	if err := c.Reload(cfg); err != nil {
		c.t.Fatalf("reload: %v", err)
	}
}

// Run runs the Caddy binary with a command of its command line, like
// validate or stop, and returns what it wrote and its exit status.
func (c *Caddy) Run(args ...string) (output string, status int) {
	c.t.Helper()
	cmd := exec.Command(c.bin.Caddy, args...)
	cmd.Dir, cmd.Env = c.Dir, c.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// RunConfig is Run for the commands that take a configuration file.
func (c *Caddy) RunConfig(cfg Config, command string, args ...string) (output string, status int) {
	c.t.Helper()
	return c.Run(append(append([]string{command}, c.configArgs(cfg)...), args...)...)
}

// PID is the process id of the running Caddy.
func (c *Caddy) PID() int { return c.cmd.Process.Pid }

// Running tells whether Caddy runs.
func (c *Caddy) Running() bool {
	if c.cmd == nil {
		return false
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// ExitStatus is the exit status of a Caddy that has ended, -1 for one that
// was killed.
func (c *Caddy) ExitStatus() int { return c.cmd.ProcessState.ExitCode() }

// Stop ends Caddy with SIGTERM, as a service manager does, and returns how
// long that took.
func (c *Caddy) Stop() time.Duration {
	c.t.Helper()
	start := time.Now()
	c.Signal(syscall.SIGTERM)
	c.AwaitExit(Slow(15 * time.Second))
	if status := c.ExitStatus(); status != 0 {
		c.t.Errorf("caddy ended with status %d", status)
	}
	return time.Since(start)
}

// Signal sends a signal to Caddy.
func (c *Caddy) Signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Fatal(err)
	}
}

// AwaitExit waits until Caddy has ended.
func (c *Caddy) AwaitExit(timeout time.Duration) {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(timeout):
		c.t.Fatalf("caddy still runs after %s", timeout)
	}
}

// Kill ends Caddy with SIGKILL and waits for its end.
func (c *Caddy) Kill() {
	c.t.Helper()
	c.Signal(syscall.SIGKILL)
	c.AwaitExit(5 * time.Second)
}

// end is the end of the test for this Caddy.
func (c *Caddy) end() {
	t := c.t
	t.Helper()
	c.client.CloseIdleConnections()
	c.admin.CloseIdleConnections()
	defer c.report()
	if c.Running() {
		c.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(Slow(10 * time.Second)):
			t.Error("caddy did not end within 10s of SIGTERM")
			c.dump()
			c.Kill()
		}
	}
	if !WaitFor(2*time.Second, func() bool { return c.Count() == 0 }) {
		for _, p := range c.Processes() {
			t.Errorf("left over: process %d, instance %q: %q", p.PID, p.Instance, p.Args)
			p.Kill()
		}
	}
	log := c.RawLog()
	for _, sign := range []string{"DATA RACE", "panic serving", "panic: ", "fatal error: "} {
		if _, trace, found := strings.Cut(log, sign); found {
			t.Errorf("caddy's log has %q:\n%.6000s", sign, trace)
		}
	}
}

// dump makes Caddy write the stacks of its goroutines to the log.
func (c *Caddy) dump() {
	res := c.askAdmin(http.MethodGet, "/debug/pprof/goroutine?debug=2", "", "")
	c.t.Logf("caddy's goroutines:\n%s", res.Body)
}

func (c *Caddy) report() {
	if c.t.Failed() {
		c.t.Logf("caddy's log:\n%s", lastLines(c.RawLog(), 120))
		c.t.Logf("the journal: %d lines, last:\n%s", len(c.Journal()), lastJournal(c.Journal(), 20))
	}
}

func lastJournal(j Journal, n int) string {
	var b strings.Builder
	for _, e := range j[max(0, len(j)-n):] {
		fmt.Fprintf(&b, "%s pid=%d %s %s seq=%s inside=%d status=%s\n",
			time.Unix(0, e.Time).Format("15:04:05.000"), e.PID, e.Event, e.Path, e.Seq, e.Inside, strconv.Itoa(e.Status))
	}
	return b.String()
}
