package e2e

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG8_FailingServiceTellsAllWaitersAtOnce(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-exit-code", "3", "-print", "no database"), "wait_timeout 60s"))
	burst := c.Burst("web", 20, "/")
	all := burst.Wait(t, harness.Slow(15*time.Second))
	for _, r := range all {
		wantRefusal(t, r, "start_failed")
		if !strings.Contains(r.Body, "exit status 3") {
			t.Errorf("the answer does not say why: %s", r.Body)
		}
		if strings.Contains(r.Body, "no database") {
			t.Errorf("the answer has output of the process: %s", r.Body)
		}
	}
	if n := c.Journal().Starts(); n != 3 {
		t.Errorf("%d starts, want 3 in a row", n)
	}
	exits := c.Journal().Of("exit")
	last := time.Unix(0, exits[len(exits)-1].Time)
	if since := time.Since(last); since > harness.Slow(time.Second) {
		t.Errorf("the last waiter was told %s after the last start had failed", since)
	}
	s := c.Service("web")
	if s.State != "failing" || !strings.Contains(fmt.Sprint(s.LastError), "no database") {
		t.Errorf("state %s, last error %v, want the last line of output in it", s.State, s.LastError)
	}
}

func TestFailingStartsDoNotTouchReadyInstances(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-exit-while", c.Path("broken")), "instances 0 2", "concurrency 1", "scale queue"))
	wantOK(t, c.Get("/"))
	c.Open("broken")
	held := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 2)
	waits := c.Send(harness.Request{})
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("exit")) > 0 }, "a further start has failed")
	if s := c.Service("web"); s.State != "awake" || s.Waiting != 1 {
		t.Errorf("state %s, %d waiting", s.State, s.Waiting)
	}
	c.Open("gate")
	wantOK(t, held.Wait(t, soon))
	wantOK(t, waits.Wait(t, soon))
}

func TestFailingServiceRecoversByItselfWhenItIsAsked(t *testing.T) {
	c := newCaddy(t)
	c.Open("broken")
	c.Start(web(c, args("-exit-while", c.Path("broken"))))
	wantRefusal(t, c.Get("/"), "start_failed")
	c.Shut("broken")
	harness.Eventually(t, harness.Slow(20*time.Second), func() bool { return c.Get("/").Status == 200 }, "the service answers")
	if s := c.Service("web"); s.State != "awake" {
		t.Errorf("state %s", s.State)
	}
}

func TestInstanceThatDiesShortlyAfterReadyCountsAsAFailedStart(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-die-after-ready", "50ms"), "instances 1 1"))
	harness.Eventually(t, harness.Slow(15*time.Second), func() bool { return c.Service("web").State == "failing" }, "the service is failing")
	// Never tighter than the back-off, though each of them was ready.
	starts := c.Journal().Of("start")
	for i := 1; i < min(3, len(starts)); i++ {
		if pause := time.Duration(starts[i].Time - starts[i-1].Time); pause < 500*time.Millisecond {
			t.Errorf("start %d came %s after the one before", i+1, pause)
		}
	}
}

func TestInstanceThatNeverListensIsEndedAfterStartTimeout(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-never-listen"), "start_timeout 200ms", "stop_timeout 200ms", "wait_timeout 700ms"))
	r := c.Get("/")
	wantRefusal(t, r, "start_failed")
	if !strings.Contains(r.Body, "not ready within 200ms") {
		t.Errorf("the answer says %s", r.Body)
	}
	c.AwaitProcesses(0, soon)
	if got := c.Metrics("caddy_usher_start_failures_total")[`caddy_usher_start_failures_total{reason="timeout",service="web"}`]; got == "" || got == "0" {
		t.Errorf("start failures: %v", c.Metrics("caddy_usher_start_failures_total"))
	}
}

func TestInstanceThatListensLateIsWaitedFor(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-delay", "600ms")))
	r := c.Get("/")
	wantOK(t, r)
	if n := c.Journal().Starts(); n != 1 || r.Took < 600*time.Millisecond {
		t.Errorf("%d starts, answered after %s", n, r.Took)
	}
}

func TestErrorsOfAnInstanceAreItsOwnAnswers(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-status", "500")))
	for range 10 {
		if r := c.Get("/"); r.Status != 500 || r.UsherError() != "" {
			t.Errorf("status %d, Usher-Error %q", r.Status, r.UsherError())
		}
	}
	if s := c.Service("web"); s.State != "awake" || s.Instances.Ejected != 0 || c.Journal().Starts() != 1 {
		t.Errorf("%+v, %d starts", s, c.Journal().Starts())
	}
}

func TestInstanceThatIgnoresTheStopSignalIsKilled(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-ignore-term"), "idle_timeout 200ms", "scale queue", "stop_timeout 300ms"))
	wantOK(t, c.Get("/"))
	c.AwaitProcesses(0, soon)
	j := c.Journal()
	if len(j.Of("term")) != 1 || len(j.Of("exit")) != 0 {
		t.Errorf("%d stop signals, %d orderly ends", len(j.Of("term")), len(j.Of("exit")))
	}
	wantOK(t, c.Get("/"))
}

func TestStopSignalIsTheOneThatIsConfigured(t *testing.T) {
	c := newCaddy(t)
	cfg := harness.Config{Site: harness.Usher("web", c.BackendWith("stop_signal INT"), "idle_timeout 200ms", "scale queue")}
	c.Start(cfg)
	wantOK(t, c.Get("/"))
	c.AwaitProcesses(0, soon)
	if term := c.Journal().Of("term"); len(term) != 1 || term[0].Path != "interrupt" {
		t.Errorf("signals: %+v", term)
	}
}

func TestInstanceThatForksAndLeavesIsAFailedStart(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-daemonize", "-gate", c.Path("never")), "wait_timeout 500ms"))
	r := c.Get("/")
	if code := r.UsherError(); code != "start_failed" && code != "wait_timeout" {
		t.Errorf("status %d, Usher-Error %q", r.Status, code)
	}
	if s := c.Service("web"); s.LastError == nil {
		t.Error("nothing says that the process has ended")
	}
	c.Kill()
	c.Start(web(c, nil))
	c.AwaitProcesses(0, soon)
}

func TestExitIsSeenThoughAGrandchildHoldsTheOutput(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-fork")))
	wantOK(t, c.Get("/"))
	inst := c.Service("web").InstanceList[0]
	c.Get("/crash")
	harness.Eventually(t, harness.Slow(time.Second), func() bool {
		for _, i := range c.Service("web").InstanceList {
			if i.ID == inst.ID {
				return false
			}
		}
		return true
	}, "the instance is gone")
	c.Kill()
	c.Start(web(c, nil))
	c.AwaitProcesses(0, soon)
}

func TestAllPortsTakenIsToldAndOvercome(t *testing.T) {
	c := newCaddy(t)
	taken, err := net.Listen("tcp", c.SpareAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(c.SpareAddr)
	cfg := web(c, nil)
	cfg.Ports = port + "-" + port
	c.Start(cfg)
	held := c.Send(harness.Request{})
	harness.Eventually(t, soon, func() bool {
		return strings.Contains(fmt.Sprint(c.Service("web").LastError), "port")
	}, "the error names the ports")
	if n := c.Journal().Starts(); n != 0 {
		t.Errorf("%d processes were started without a port", n)
	}
	taken.Close()
	r := held.Wait(t, harness.Slow(10*time.Second))
	if r.Status != 200 && r.UsherError() != "start_failed" {
		t.Errorf("status %d, Usher-Error %q", r.Status, r.UsherError())
	}
	harness.Eventually(t, harness.Slow(15*time.Second), func() bool { return c.Get("/").Status == 200 }, "the service answers")
}

func TestProgramOrDirectoryThatDoesNotExistFailsTheReload(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.Backend())})
	if err := os.WriteFile(c.Path("plain"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for culprit, backend := range map[string]string{
		"/no/such/program":   c.Command("", "/no/such/program"),
		"/no/such/directory": c.BackendWith("dir /no/such/directory"),
		c.Path("plain"):      c.Command("", c.Path("plain")),
	} {
		err := c.Reload(harness.Config{Site: harness.Usher("web", backend)})
		if err == nil || !strings.Contains(err.Error(), culprit) || !strings.Contains(err.Error(), "web") {
			t.Errorf("%s: the message names not both: %v", culprit, err)
		}
	}
}

func TestDirectoryThatVanishesFailsTheService(t *testing.T) {
	c := newCaddy(t)
	dir := c.Path("www")
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("dir "+dir))})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, c.Get("/"), "start_failed")
	if s := c.Service("web"); s.State != "failing" || !strings.Contains(fmt.Sprint(s.LastError), dir) {
		t.Errorf("state %s, last error %v", s.State, s.LastError)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Slow(10*time.Second), func() bool { return c.Get("/").Status == 200 }, "the service answers")
}

func TestInstanceGetsAnEnvironmentOfItsOwn(t *testing.T) {
	c := newCaddy(t)
	c.Setenv("FROM_CADDY", "handed on")
	dir, err := filepath.EvalSymlinks(c.Path("www"))
	if err != nil {
		t.Fatal(err)
	}
	options := "dir " + dir + "\nenv WHO {usher.service}/{usher.instance}\nenv GIVEN {env.FROM_CADDY}"
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith(options, "-addr", "{usher.address}", "-print", "port={usher.port}"))})
	r := c.Get("/env")
	wantOK(t, r)
	inst := c.Service("web").InstanceList[0]
	_, port, _ := net.SplitHostPort(inst.Address)
	for _, line := range []string{
		"PORT=" + port, "PORT0=" + port, "HOST=127.0.0.1",
		"USHER_SERVICE=web", "USHER_INSTANCE=" + inst.ID,
		"WHO=web/" + inst.ID, "GIVEN=handed on", "cwd=" + dir,
		fmt.Sprintf(`args=["-addr" %q "-print" "port=%s"]`, inst.Address, port),
	} {
		if !strings.Contains("\n"+r.Body, "\n"+line+"\n") {
			t.Errorf("the environment lacks %s:\n%s", line, r.Body)
		}
	}
	if strings.Contains(r.Body, "SECRET_OF_CADDY") {
		t.Errorf("the environment has what only Caddy is to know:\n%s", r.Body)
	}
}

func TestOutputOfAnInstanceGoesToTheLog(t *testing.T) {
	for _, output := range []string{"log", "discard"} {
		t.Run(output, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("output "+output, "-print", "hello from inside"))})
			wantOK(t, c.Get("/"))
			logged := func() bool { return strings.Contains(c.RawLog(), "hello from inside") }
			if output == "log" {
				harness.Eventually(t, soon, logged, "the line is in the log")
				return
			}
			c.Stop()
			if logged() {
				t.Error("the line is in the log")
			}
		})
	}
}

func TestFloodOfOutputHoldsNobodyUp(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-print", strings.Repeat("x", 1000), "-print-lines", "20000")))
	wantOK(t, c.Get("/"))
	if size := len(c.RawLog()); size > 8<<20 {
		t.Errorf("the log has %d bytes", size)
	}
}

func TestInstanceMayListenOnASocket(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("listen unix", "-socket", "{usher.socket}"), "idle_timeout 300ms", "scale queue")})
	r := c.Get("/env")
	wantOK(t, r)
	address := strings.TrimPrefix(c.Service("web").InstanceList[0].Address, "unix/")
	if !strings.HasPrefix(address, "/") {
		t.Errorf("the address is %q", address)
	}
	c.AwaitProcesses(0, soon)
	harness.Eventually(t, soon, func() bool { _, err := os.Stat(address); return os.IsNotExist(err) }, "the socket file is gone")
	wantOK(t, c.Get("/"))
}

func TestInstanceMayGetItsSocketPassed(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("listen fd", "-gate", c.Path("gate")), "idle_timeout 300ms", "scale queue")})
	held := c.Send(harness.Request{Path: "/env"})
	harness.Eventually(t, soon, func() bool { return c.Journal().Starts() == 1 }, "the process has started")
	// The socket takes connections already; the process does not accept any.
	harness.Throughout(t, 200*time.Millisecond, func() bool { return c.Service("web").Instances.Ready == 0 }, "the instance is not ready")
	c.Open("gate")
	r := held.Wait(t, soon)
	wantOK(t, r)
	for _, line := range []string{"LISTEN_FDS=1\n", "LISTEN_PID=" + r.Header.Get("X-Pid") + "\n", "LISTEN_FDNAMES="} {
		if !strings.Contains(r.Body, line) {
			t.Errorf("the environment lacks %s:\n%s", line, r.Body)
		}
	}
	c.AwaitProcesses(0, soon)
	wantOK(t, c.Get("/"))
}

func TestInstanceRunsAsTheUserThatIsNamed(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("only root can switch to another user")
	}
	c := newCaddy(t)
	if err := os.WriteFile(c.Path("journal"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.Path("journal"), 0o666); err != nil {
		t.Fatal(err)
	}
	c.Start(harness.Config{Site: harness.Usher("web", c.BackendWith("user nobody"))})
	r := c.Get("/")
	wantOK(t, r)
	status, err := os.ReadFile("/proc/" + r.Header.Get("X-Pid") + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if uid := strings.Repeat("\t"+nobody.Uid, 4); !strings.Contains(string(status), "Uid:"+uid+"\n") {
		t.Errorf("the process is not of user %s:\n%s", nobody.Uid, status)
	}
	if !strings.Contains(string(status), "CapAmb:\t0000000000000000") {
		t.Errorf("ambient capabilities:\n%s", status)
	}
}
