package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// keeping is web with on_exit keep.
func keeping(c *harness.Caddy, args []string, options ...string) harness.Config {
	cfg := web(c, args, options...)
	cfg.Usher = "on_exit keep"
	return cfg
}

// endings are the ways in which a Caddy ends.
var endings = map[string]func(*harness.Caddy){
	"stop":    func(c *harness.Caddy) { c.Stop() },
	"kill -9": (*harness.Caddy).Kill,
}

// endKept ends the instances that the end of the test would leave.
func endKept(t *testing.T, c *harness.Caddy) {
	t.Helper()
	c.Post("web/suspend", `{"reason":"the test is over"}`)
	c.AwaitProcesses(0, soon)
}

// awaitAdopted waits until web has one ready instance, which is to be that one.
func awaitAdopted(t *testing.T, c *harness.Caddy, id string) {
	t.Helper()
	c.AwaitReady("web", 1, soon)
	if list := c.Service("web").InstanceList; len(list) != 1 || list[0].ID != id {
		t.Errorf("instances %+v, want the kept %s", list, id)
	}
}

func TestKeptInstanceIsAdoptedAndAnswersTheFirstRequest(t *testing.T) {
	for how, end := range endings {
		for _, listen := range []string{"tcp", "unix", "fd"} {
			t.Run(how+", "+listen, func(t *testing.T) {
				c := newCaddy(t)
				app := args()
				if listen == "unix" {
					app = args("-socket", "{usher.socket}")
				}
				cfg := harness.Config{
					Usher: "on_exit keep",
					Site:  harness.Usher("web", c.BackendWith("listen "+listen, app...), "instances 0 3", "concurrency 1"),
				}
				c.Start(cfg)
				before := c.Get("/")
				wantOK(t, before)
				pid := onlyPID(t, c)
				end(c)
				c.Start(cfg)
				r := c.Get("/")
				wantOK(t, r)
				if got, want := r.Header.Get("X-Instance"), before.Header.Get("X-Instance"); got != want {
					t.Errorf("instance %s answers, want the kept %s", got, want)
				}
				if got := onlyPID(t, c); got != pid {
					t.Errorf("process %d runs, want %d", got, pid)
				}
				if n := c.Journal().Starts(); n != 1 {
					t.Errorf("%d starts", n)
				}
				if n := c.Service("web").ColdStarts; n != 0 {
					t.Errorf("%d cold starts: nothing was started", n)
				}
				// It can be stopped like a child.
				endKept(t, c)
				harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("term")) == 1 }, "by the stop signal")
			})
		}
	}
}

func TestKeptInstanceIsAdoptedAgainAndAgain(t *testing.T) {
	c := newCaddy(t)
	cfg := keeping(c, nil, "instances 1 1")
	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	first := c.Service("web").InstanceList[0]
	for range 2 {
		for _, end := range endings {
			end(c)
			c.Start(cfg)
			awaitAdopted(t, c, first.ID)
			if since := c.Service("web").InstanceList[0].Since; since != first.Since {
				t.Errorf("it is said to run since %v, not since %v", since, first.Since)
			}
		}
	}
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d starts", n)
	}
	endKept(t, c)
}

func TestOutputOfAKeptInstanceIsLoggedByTheNextCaddyToo(t *testing.T) {
	for how, end := range endings {
		t.Run(how, func(t *testing.T) {
			c := newCaddy(t)
			cfg := keeping(c, nil, "instances 1 1")
			c.Start(cfg)
			c.AwaitReady("web", 1, soon)
			address := c.Service("web").InstanceList[0].Address
			say := func(line string) {
				t.Helper()
				r, err := http.Get("http://" + address + "/say?line=" + url.QueryEscape(line))
				if err != nil {
					t.Fatal(err)
				}
				r.Body.Close()
			}
			logged := func(line string) int {
				n := 0
				for _, e := range c.Log() {
					if e.Msg == line {
						n++
					}
				}
				return n
			}
			say("said before")
			harness.Eventually(t, soon, func() bool { return logged("said before") == 1 }, "its output is logged")
			// What was logged is marked as read within a moment.
			marks, err := filepath.Glob(c.Path("data/caddy/usher/process/*.read"))
			if err != nil || len(marks) != 1 {
				t.Fatalf("%v %v", marks, err)
			}
			harness.Eventually(t, soon, func() bool {
				text, err := os.ReadFile(marks[0])
				return err == nil && strings.HasPrefix(string(text), "00000000000000000012 ")
			}, "it is marked how far the output was read")
			end(c)
			say("said in between")
			c.Start(cfg)
			harness.Eventually(t, soon, func() bool { return logged("said in between") == 1 }, "what it wrote without a Caddy is logged")
			say("said after")
			harness.Eventually(t, soon, func() bool { return logged("said after") == 1 }, "its output is logged again")
			if n := logged("said before"); n != 1 {
				t.Errorf("a line was logged %d times", n)
			}
			endKept(t, c)
		})
	}
}

func TestEndOfAnAdoptedInstanceIsSeen(t *testing.T) {
	c := newCaddy(t)
	cfg := keeping(c, nil, "instances 1 1")
	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	kept := c.Service("web").InstanceList[0]
	c.Kill()
	c.Start(cfg)
	awaitAdopted(t, c, kept.ID)
	c.Processes()[0].Kill()
	harness.Eventually(t, soon, func() bool {
		list := c.Service("web").InstanceList
		return len(list) == 1 && list[0].ID != kept.ID && list[0].State == "ready"
	}, "it is replaced")
	if !c.Logged("an adopted instance ended by itself") {
		t.Error("the log does not say so")
	}
	endKept(t, c)
}

func TestKeptInstanceThatFitsNoServiceIsEnded(t *testing.T) {
	for name, next := range map[string]func(*harness.Caddy) harness.Config{
		"another command": func(c *harness.Caddy) harness.Config {
			return keeping(c, args("-print", "another revision"), "instances 1 1")
		},
		"another service": func(c *harness.Caddy) harness.Config {
			return keeping(c, nil, "instances 1 1")
		},
		"on_exit stop": func(c *harness.Caddy) harness.Config { return web(c, nil, "instances 1 1") },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			first := keeping(c, nil, "instances 1 1")
			if name == "another service" {
				first.Site = harness.Usher("gone", c.Backend(), "instances 1 1")
			}
			c.Start(first)
			harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("listen")) == 1 }, "an instance listens")
			pid := onlyPID(t, c)
			c.Stop()
			c.Start(next(c))
			c.AwaitReady("web", 1, soon)
			c.AwaitProcesses(1, soon)
			if got := onlyPID(t, c); got == pid {
				t.Error("it still runs")
			}
			wantOK(t, c.Get("/"))
			harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("term")) == 1 }, "it was ended by the stop signal")
			endKept(t, c)
		})
	}
}

func TestKeptInstancesAboveTheMaximumAreEnded(t *testing.T) {
	c := newCaddy(t)
	c.Start(keeping(c, nil, "instances 3 3"))
	c.AwaitReady("web", 3, soon)
	c.Kill()
	c.Start(keeping(c, nil, "instances 0 1"))
	c.AwaitProcesses(1, soon)
	wantOK(t, c.Get("/"))
	if n := c.Journal().Starts(); n != 3 {
		t.Errorf("%d starts, want those of before", n)
	}
	endKept(t, c)
}

func TestKeptInstanceThatDoesNotAnswerIsReplaced(t *testing.T) {
	hang := func(_ *harness.Caddy, pid int) { _ = syscall.Kill(pid, syscall.SIGSTOP) }
	for name, test := range map[string]struct {
		listen, ready string
		spoil         func(c *harness.Caddy, pid int)
	}{
		"it hangs": {"tcp", "ready http /healthz {\ntimeout 300ms\n}", hang},
		// The kernel answers for it: only the queue of the socket tells.
		"it accepts nothing": {"fd", "ready tcp {\ntimeout 300ms\n}", hang},
		"it refuses connections": {"tcp", "ready tcp {\ntimeout 300ms\n}", func(c *harness.Caddy, _ int) {
			// The kept instance is asked directly: through Caddy it would be replaced.
			r, err := http.Get("http://" + c.Journal().Of("listen")[0].Path + "/deafen")
			if err == nil {
				r.Body.Close()
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			cfg := harness.Config{
				Usher: "on_exit keep",
				Site:  harness.Usher("web", c.BackendWith("listen "+test.listen), "instances 0 1", "stop_timeout 300ms", test.ready),
			}
			c.Start(cfg)
			before := c.Get("/")
			wantOK(t, before)
			pid := onlyPID(t, c)
			c.Kill()
			test.spoil(c, pid)
			c.Start(cfg)
			r := c.Get("/")
			wantOK(t, r)
			if r.Header.Get("X-Instance") == before.Header.Get("X-Instance") {
				t.Error("the kept instance answers")
			}
			harness.Eventually(t, soon, func() bool { return c.Count() == 1 && onlyPID(t, c) != pid }, "the kept one is ended")
			if !c.Logged("an adopted instance does not answer: it is stopped") {
				t.Error("the log does not say so")
			}
			if e := c.Service("web").LastError; e != nil {
				t.Errorf("it counts as a failed start: %v", e)
			}
			endKept(t, c)
		})
	}
}

func TestProcessThatHasThePidOfAKeptInstanceIsNotTouched(t *testing.T) {
	c := newCaddy(t)
	cfg := keeping(c, nil, "instances 1 1")
	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	kept := c.Service("web").InstanceList[0]
	c.Kill()
	c.Processes()[0].Kill()
	c.AwaitProcesses(0, soon)

	bystander := exec.Command("sleep", "1000")
	// A group of its own, as an instance has.
	bystander.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = bystander.Wait()
	}()
	t.Cleanup(func() { _ = bystander.Process.Kill(); <-ended })
	editRecord(t, c, kept.ID, func(r map[string]any) { r["pid"] = bystander.Process.Pid })

	c.Start(cfg)
	c.AwaitReady("web", 1, soon)
	wantOK(t, c.Get("/"))
	harness.Eventually(t, soon, func() bool {
		_, err := os.Stat(recordPath(c, kept.ID))
		return os.IsNotExist(err)
	}, "the record is gone")
	select {
	case <-ended:
		t.Error("the process that has the pid now was ended")
	default:
	}
	endKept(t, c)
}

func recordPath(c *harness.Caddy, instance string) string {
	return c.Path("data/caddy/usher/process/" + instance + ".json")
}

// editRecord changes the record of an instance.
func editRecord(t *testing.T, c *harness.Caddy, instance string, change func(map[string]any)) {
	t.Helper()
	text, err := os.ReadFile(recordPath(c, instance))
	if err != nil {
		t.Fatal(err)
	}
	r := make(map[string]any)
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	if err := decoder.Decode(&r); err != nil {
		t.Fatal(err)
	}
	change(r)
	if text, err = json.Marshal(r); err == nil {
		err = os.WriteFile(recordPath(c, instance), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestOfTwoCaddysWithOneDataDirectoryOneAdopts(t *testing.T) {
	c, other := newCaddy(t), harness.New(t)
	other.Setenv("XDG_DATA_HOME", c.Path("data"))
	cfg := keeping(c, nil, "instances 0 1")
	c.Start(cfg)
	before := c.Get("/")
	wantOK(t, before)
	c.Kill()

	var starts sync.WaitGroup
	for _, one := range []*harness.Caddy{c, other} {
		starts.Go(func() {
			if err := one.TryStart(cfg); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	if t.Failed() {
		return
	}
	harness.Eventually(t, soon, func() bool {
		return c.Service("web").Instances.Ready+other.Service("web").Instances.Ready == 1
	}, "one of them has it")
	// Nor does the other end it.
	harness.Throughout(t, 300*time.Millisecond, func() bool { return c.Count() == 1 }, "it runs on")
	adopter := c
	if other.Service("web").Instances.Ready == 1 {
		adopter = other
	}
	r := adopter.Get("/")
	wantOK(t, r)
	if r.Header.Get("X-Instance") != before.Header.Get("X-Instance") {
		t.Error("another instance answers")
	}
	endKept(t, adopter)
}
