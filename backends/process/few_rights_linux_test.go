package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// switchingOnly are the capabilities without which `user` is refused.
const switchingOnly = "setuid,setgid,kill"

// withFewRights is a command of this binary that runs as a service user with
// these capabilities, as systemd's AmbientCapabilities= gives them, and no more.
func withFewRights(binary, capabilities string, args ...string) *exec.Cmd {
	caps := "+" + strings.ReplaceAll(capabilities, ",", ",+")
	id := strconv.Itoa(otherUser)
	all := append([]string{
		"--reuid", id, "--regid", id, "--clear-groups",
		"--bounding-set", "-all," + caps, "--inh-caps", "-all," + caps, "--ambient-caps", "-all," + caps,
		binary, "child",
	}, args...)
	cmd := exec.Command("setpriv", all...)
	cmd.Dir = "/"
	return cmd
}

// ofServiceUser makes directories that belong to the service user.
func ofServiceUser(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, otherUser, otherUser); err != nil {
			t.Fatal(err)
		}
	}
}

func init() {
	// the next Caddy of one that was killed: it says what it has adopted, and
	// stops it when it is told to
	roles["heir"] = func(args []string) int {
		b := shell(args[1])
		b.User = args[2]
		if err := b.Provision(caddy.Context{}); err != nil {
			fmt.Println(err)
			return 1
		}
		ended := make(chan string, 1)
		s, err := b.Open(scaler.Env{
			Service: "web", Revision: "r2", Logger: quiet,
			Host: &scaler.Host{DataDir: args[0], Local: func() scaler.LocalOptions {
				return scaler.LocalOptions{PortFrom: 26000, PortTo: 26999, Keep: true}
			}},
			Report: func(r scaler.Report) {
				for _, in := range r.Instances {
					if in.Phase == scaler.PhaseEnded {
						ended <- in.ID
					}
				}
			},
		})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		r := s.(*runner)
		r.mu.Lock()
		n, id, pid := len(r.instances), "", 0
		if n > 0 {
			id, pid = r.instances[0].id, r.instances[0].child.pid
		}
		r.mu.Unlock()
		fmt.Println("adopted", n, pid)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		if n == 0 {
			return 1
		}
		fmt.Println("readable:", environReadable(pid))
		if err := s.Scale(context.Background(), scaler.Order{Stop: []string{id}, StopTimeout: patience}); err != nil {
			fmt.Println(err)
			return 1
		}
		select {
		case <-ended:
			fmt.Println("ended")
		case <-time.After(patience):
			fmt.Println("still there")
		}
		_ = s.Close(context.Background(), 0)
		return 0
	}

	// a Caddy that starts one instance with a socket and says what is wrong
	roles["unix-starter"] = func(args []string) int {
		b := shell(args[1])
		b.User, b.Listen = args[2], listenUnix
		if err := b.Provision(caddy.Context{}); err != nil {
			fmt.Println(err)
			return 1
		}
		s, err := b.Open(scaler.Env{
			Service: "web", Revision: "r1", Logger: quiet,
			Host:   &scaler.Host{DataDir: args[0], Local: func() scaler.LocalOptions { return scaler.LocalOptions{} }},
			Report: func(scaler.Report) {},
		})
		if err == nil {
			err = s.Scale(context.Background(), scaler.Order{Instances: 1, StopTimeout: time.Second})
		}
		if err != nil {
			f := scaler.AsFailure(err)
			fmt.Println("failure:", f.Reason, f.ForGood, f)
			return 0
		}
		r := s.(*runner)
		in := r.instances[0]
		for range 500 {
			if d := r.Diagnose(context.Background(), in.id); d.Mistake {
				fmt.Println("mistake:", d.Short+";", d.Detail)
				break
			}
			if conn, err := net.Dial("unix", in.socket); err == nil {
				fmt.Println("peer:", in.checkPeer(conn))
				conn.Close()
				break
			} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
				fmt.Println(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = s.Close(context.Background(), time.Second)
		return 0
	}
}

// environReadable says whether this process may read the environment of
// another one.
func environReadable(pid int) bool {
	_, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil
}

func TestAKeptInstanceOfAnotherUserIsAdoptedWithoutTheRightToLookIntoIt(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	binary, data, marks := publicBinary(t, dir), filepath.Join(dir, "data"), filepath.Join(dir, "marks")
	ofServiceUser(t, data, marks)
	if err := os.Chmod(marks, 0o777); err != nil {
		t.Fatal(err)
	}
	// A member of its session, in another process group, ends with it, too. It is
	// there once it says so: in the moment after the fork the shell's child has the
	// trap of the shell, and would lose the signal.
	script := `trap 'exit' TERM; perl -e 'setpgrp; open F, ">` + marks + `/member"; print F "$$\n"; close F; exec "sleep", "1000"' & while :; do sleep 0.02; done`
	var member int
	pid := killedCaddyOf(t, withFewRights(binary, switchingOnly, "caddy", data, "keep", script, "nobody"), func() { member = pidIn(t, marks+"/member") })
	if gone(pid) {
		t.Fatal("it was not kept")
	}
	cmd := withFewRights(binary, switchingOnly, "heir", data, script, "nobody")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	first, _ := out.ReadString('\n')
	if want := fmt.Sprintf("adopted 1 %d\n", pid); first != want {
		t.Errorf("%q, want %q", first, want)
	}
	fmt.Fprintln(stdin)
	rest, _ := io.ReadAll(out)
	_ = cmd.Wait()
	if string(rest) != "readable: false\nended\n" {
		t.Errorf("%q", rest)
	}
	eventually(t, "the end of its processes", func() bool { return gone(pid) && gone(member) })
	if left := records(t, data); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestASocketThatTheRightsOfCaddyDoNotAllowFailsWithTheCapability(t *testing.T) {
	needRoot(t)
	for capabilities, f := range map[string]struct {
		mode string // of the socket
		want []string
	}{
		// Without CAP_CHOWN there is no directory that the instance can use.
		switchingOnly: {"", []string{"failure: forbidden true", "user nobody", "CAP_CHOWN"}},
		// Without CAP_DAC_OVERRIDE the socket can be out of reach.
		switchingOnly + ",chown":              {"", []string{"mistake: listens on a socket to which Caddy may not connect", "/s:", "umask of 007", "CAP_DAC_OVERRIDE"}},
		switchingOnly + ",chown,":             {"umask 007;", []string{"peer: <nil>"}},
		switchingOnly + ",chown,dac_override": {"", []string{"peer: <nil>"}},
	} {
		t.Run(capabilities+f.mode, func(t *testing.T) {
			dir := shortDir(t)
			binary, data, run := publicBinary(t, dir), filepath.Join(dir, "data"), filepath.Join(dir, "run")
			ofServiceUser(t, data, run)
			cmd := withFewRights(binary, strings.TrimSuffix(capabilities, ","), "unix-starter", data, f.mode+perlUnix, "nobody")
			cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+run)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v", err)
			}
			for _, want := range f.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("%q is not in %s", want, out)
				}
			}
		})
	}
}
