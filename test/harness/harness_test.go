package harness

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// The harness is tried with stock reverse_proxy in front of an instance that
// the test starts itself: what fails here is not Usher's fault.
func stock(t *testing.T, args ...string) *Caddy {
	t.Helper()
	c := New(t)
	startApp(t, c, args...)
	c.Start(Config{
		NoUsher: true,
		Global:  "servers {\n\tprotocols h1 h2 h2c\n}",
		Site:    "log\nreverse_proxy " + c.SpareAddr,
		Sites:   "https://localhost:" + port(c.TLSAddr) + " {\n\ttls internal\n\treverse_proxy " + c.SpareAddr + "\n}\n",
	})
	return c
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// startApp starts the app on SpareAddr, as Usher would.
func startApp(t *testing.T, c *Caddy, args ...string) {
	t.Helper()
	cmd := exec.Command(c.App(), args...)
	cmd.Env = []string{
		"HOST=127.0.0.1", "PORT=" + port(c.SpareAddr), "APP_JOURNAL=" + c.journalPath(),
		markVariable + "=" + c.mark, "USHER_INSTANCE=i1", "USHER_SERVICE=stock",
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	Eventually(t, 5*time.Second, func() bool { return len(c.Journal().Of("listen")) == 1 }, "the app listens")
}

// A process is reported as left over when the test does not end it before
// Caddy's own clean-up, so these tests end theirs.
func endApps(c *Caddy) {
	for _, p := range c.Processes() {
		p.Kill()
	}
}

func TestClientsReachTheApp(t *testing.T) {
	t.Parallel()
	c := stock(t)
	defer endApps(c)

	if r := c.Get("/"); r.Status != 200 || !strings.HasPrefix(r.Body, "instance i1 pid ") || r.Proto != "HTTP/1.1" {
		t.Errorf("plain: %+v", r)
	}
	for name, r := range map[string]Request{
		"h2c": {Client: c.H2C()},
		"h2":  {Client: c.H2(), TLS: true},
	} {
		r.Method, r.Path, r.Body = http.MethodPost, "/echo", strings.NewReader("hello")
		if got := c.Do(r); got.Body != "hello" || got.Proto != "HTTP/2.0" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if r := c.Get("/hints"); len(r.Hints) != 1 || r.Hints[0].Get("Link") == "" || r.Status != 200 {
		t.Errorf("early hints: %+v", r)
	}
	if r := c.Get("/abort"); r.Err == nil || r.Body != "the beginning" {
		t.Errorf("aborted answer: %+v", r)
	}
	ws := c.WebSocket("/ws", 5*time.Second)
	if err := ws.Echo("over the wire"); err != nil {
		t.Error(err)
	}
	ws.Close()
	stream := c.Stream("/sse")
	for want := range 3 {
		if e, _ := stream.Next(t, 5*time.Second); e.Name != "tick" || e.Data != strconv.Itoa(want) {
			t.Errorf("event %d: %+v", want, e)
		}
	}
	stream.Close()
	if len(c.AccessLog()) == 0 {
		t.Error("the access log is empty")
	}
}

func TestRawConnectionsSendHalvesAndAbort(t *testing.T) {
	t.Parallel()
	c := stock(t)
	defer endApps(c)

	half := c.Dial()
	half.SendHead("POST", "/echo", "Content-Length: 10")
	half.Send("12345")
	if r := half.Receive(100 * time.Millisecond); r.Err == nil {
		t.Errorf("answered before the end of the body: %+v", r)
	}
	half.Abort()

	whole := c.Dial()
	whole.SendHead("POST", "/echo", "Content-Length: 10")
	whole.Send("12345", "890")
	if r := whole.Receive(5 * time.Second); r.Body != "12345\r\n890" {
		t.Errorf("body in two parts: %+v", r)
	}
}

func TestJournalTellsOrderAndConcurrency(t *testing.T) {
	t.Parallel()
	c := stock(t)
	defer endApps(c)

	var pending []*Pending
	for i := range 3 {
		pending = append(pending, c.Send(Request{
			Path:   "/hold?gate=" + c.Path("gate"),
			Header: http.Header{"X-Seq": {strconv.Itoa(i)}},
		}))
		Eventually(t, 5*time.Second, func() bool { return len(c.Journal().Of("begin")) == i+1 }, "request %d is inside", i)
	}
	c.Open("gate")
	for _, p := range pending {
		if r := p.Wait(t, 5*time.Second); r.Status != 200 {
			t.Errorf("%+v", r)
		}
	}
	j := c.Journal()
	if got := j.Seqs(); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("order %v", got)
	}
	if j.MaxInside() != 3 || j.Starts() != 1 {
		t.Errorf("at most %d inside, %d starts", j.MaxInside(), j.Starts())
	}
}

func TestProcessesAreFoundAfterAForkAndNotThoseOfOthers(t *testing.T) {
	t.Parallel()
	c, other := stock(t, "-fork"), New(t)
	defer endApps(c)

	c.AwaitProcesses(2, 5*time.Second)
	if n := other.Count(); n != 0 {
		t.Errorf("another test sees %d processes", n)
	}
	for _, p := range c.Processes() {
		if p.Instance != "i1" || p.Service != "stock" {
			t.Errorf("%+v", p)
		}
	}
}

func TestReloadStopAndRestart(t *testing.T) {
	t.Parallel()
	c := New(t)
	cfg := func(text string) Config { return Config{NoUsher: true, Site: "respond " + text} }
	c.Start(cfg("one"))
	c.MustReload(cfg("two"))
	if r := c.Get("/"); r.Body != "two" {
		t.Errorf("after a reload: %+v", r)
	}
	if err := c.Reload(cfg("{")); err == nil {
		t.Error("a broken configuration was loaded")
	}
	if out, status := c.RunConfig(cfg("three"), "validate"); status != 0 {
		t.Errorf("validate: status %d: %s", status, out)
	}
	c.Stop()
	c.Start(cfg("four"))
	if r := c.Get("/"); r.Body != "four" {
		t.Errorf("after a restart: %+v", r)
	}
	if out, status := c.Run("stop", "--address", c.AdminAddr); status != 0 {
		t.Errorf("stop: status %d: %s", status, out)
	}
	c.AwaitExit(5 * time.Second)
	if err := c.TryStart(cfg("{")); err == nil {
		t.Error("started with a broken configuration")
	}
}

func TestLoadCollectsEveryAnswer(t *testing.T) {
	t.Parallel()
	c := stock(t)
	defer endApps(c)

	load := c.Load(4, "/")
	Eventually(t, 10*time.Second, func() bool { return load.Len() >= 100 }, "100 answers")
	all := load.Stop()
	if bad := Failed(all); len(bad) != 0 {
		t.Errorf("%d of %d failed, the first: %+v", len(bad), len(all), bad[0])
	}
	if got := len(c.Journal().Of("begin")); got != len(all) {
		t.Errorf("%d answers, the app saw %d requests", len(all), got)
	}
}

func TestKilledCaddyIsSeenAsKilled(t *testing.T) {
	t.Parallel()
	c := New(t)
	c.Start(Config{NoUsher: true, Site: "respond here"})
	c.Signal(syscall.SIGKILL)
	c.AwaitExit(5 * time.Second)
	if c.Running() || c.ExitStatus() != -1 {
		t.Errorf("running %t, status %d", c.Running(), c.ExitStatus())
	}
}

func TestLostAreOnlyRequestsThatCaddyHadRead(t *testing.T) {
	t.Parallel()
	c := stock(t)
	defer endApps(c)

	load := c.Load(2, "/status?code=500")
	Eventually(t, 10*time.Second, func() bool { return load.Len() >= 2 }, "two answers")
	all := load.Stop()
	if got := len(c.Lost(all)); got != len(all) {
		t.Errorf("of %d answers with an error %d count as lost", len(all), got)
	}
	never := Response{Seq: "never sent", Err: net.ErrClosed}
	if got := c.Lost([]Response{never}); len(got) != 0 {
		t.Errorf("a request that Caddy never saw counts as lost: %+v", got)
	}
	seen := Response{Seq: all[0].Seq, Err: net.ErrClosed}
	if got := c.Lost([]Response{seen}); len(got) != 1 {
		t.Error("a request that Caddy had read and that broke off does not count as lost")
	}
}

func TestCaddyEndsWithTheTestProcess(t *testing.T) {
	if os.Getenv("HARNESS_CHILD") != "" {
		c := New(t)
		c.Start(Config{NoUsher: true, Site: "respond here"})
		os.Stdout.WriteString("\npid " + strconv.Itoa(c.PID()) + " in " + c.Dir + "\n")
		select {} // until killed
	}
	t.Parallel()
	// The child uses the Caddy that is built already.
	child := exec.Command(os.Args[0], "-test.run=^TestCaddyEndsWithTheTestProcess$")
	child.Env = append(os.Environ(), "HARNESS_CHILD=1", "USHER_TEST_CADDY="+Build(t).Caddy, "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var pid, dir string
	lines := bufio.NewScanner(out)
	for pid == "" && lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "pid "); ok {
			pid, dir, _ = strings.Cut(rest, " in ")
		}
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	if pid == "" {
		t.Fatal("the child has not started Caddy")
	}
	Eventually(t, 5*time.Second, func() bool {
		cmdline, err := os.ReadFile("/proc/" + pid + "/cmdline")
		return err != nil || !strings.Contains(string(cmdline), dir)
	}, "the Caddy of the killed test process has ended")
}
