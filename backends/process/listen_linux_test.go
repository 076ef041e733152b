package process

import (
	"bufio"
	"errors"
	"fmt"
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

func TestASocketIsReportedOnceItIsThere(t *testing.T) {
	b := self(t, "serve-unix", "{usher.socket}", "50ms")
	b.Listen = "unix"
	bn := open(t, b)
	in := bn.one()
	if in.Address != "" || in.Network != "" {
		t.Fatalf("an address before the socket: %+v", in)
	}
	got := bn.await("an address", in.ID, func(in scaler.Instance) bool { return in.Address != "" })
	info, err := os.Stat(got.Address)
	if err != nil || got.Network != "unix" {
		t.Fatalf("%+v: %v", got, err)
	}
	if late := time.Since(info.ModTime()); late > 2*time.Second {
		t.Fatalf("reported %s after it appeared", late)
	}
	eventually(t, "an answer", func() bool {
		conn, err := net.Dial("unix", got.Address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err := bn.runner.Confirm(t.Context(), in.ID); err != nil {
		t.Fatal(err)
	}
	bn.scale(0, in.ID)
	bn.close(patience)
	if _, err := os.Stat(filepath.Dir(got.Address)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory of the socket is left: %v", err)
	}
}

func TestWithoutInotifyASocketIsLookedFor(t *testing.T) {
	l := newSocketPoller(filepath.Join(t.TempDir(), "s"))
	appeared := make(chan bool)
	go func() { appeared <- l.wait() }()
	ln, err := net.Listen("unix", l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if !<-appeared {
		t.Fatal("it was not seen")
	}
	never := newSocketPoller(filepath.Join(t.TempDir(), "s"))
	go func() { appeared <- never.wait() }()
	never.close()
	if <-appeared {
		t.Fatal("it was seen, and is not there")
	}
}

func TestAnInstanceThatNeverMakesItsSocketLeavesNothing(t *testing.T) {
	b := shell("exec sleep 100")
	b.Listen = "unix"
	bn := open(t, b)
	in := bn.one()
	socket := bn.runner.instances[0].socket
	bn.scale(0, in.ID)
	bn.close(patience)
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory of the socket is left: %v", err)
	}
}

func TestNamesOfSocketsAreShort(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "/"+strings.Repeat("x", 100))
	b := shell("exit")
	b.Listen = "unix"
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if err := checked(b); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Fatalf("%v", err)
	}
}

func TestADirectoryOfSomebodyElseIsNotUsed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a directory away needs root")
	}
	dir := t.TempDir()
	base := filepath.Join(dir, "usher")
	if err := makeSocketBase(base); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(base); err != nil || info.Mode().Perm() != 0o711 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if err := makeSocketBase(base); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(base, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := makeSocketBase(base); err == nil {
		t.Fatal("it is used")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if err := makeSocketBase(link); err == nil {
		t.Fatal("a link is used")
	}
}

func TestAPassedSocketIsReadyWhenTheProbeWasAccepted(t *testing.T) {
	goOn := filepath.Join(t.TempDir(), "go")
	b := self(t, "serve-fd", goOn)
	b.Listen = "fd"
	bn := open(t, b)
	in := bn.one()
	probe, err := net.Dial("tcp", in.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	for range 3 {
		if err := bn.runner.Confirm(t.Context(), in.ID); !errors.Is(err, scaler.ErrNotYet) {
			t.Fatalf("confirmed before anybody accepted: %v", err)
		}
	}
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the confirmation", func() bool { return bn.runner.Confirm(t.Context(), in.ID) == nil })
	if got := get(t, "http://"+in.Address); got != "hello" {
		t.Fatalf("got %q", got)
	}
	// Connections are refused when the process has ended.
	bn.scale(0, in.ID)
	bn.awaitEnd(in.ID)
	if conn, err := net.Dial("tcp", in.Address); err == nil {
		conn.Close()
		t.Fatal("a process still listens")
	}
	if err := bn.runner.Confirm(t.Context(), in.ID); err == nil || errors.Is(err, scaler.ErrNotYet) {
		t.Fatalf("confirmed after the end: %v", err)
	}
}

func TestPortsAreTakenInTurnAndRest(t *testing.T) {
	now := time.Now()
	p := newPortPool(func() time.Time { return now })
	free := func(int) error { return nil }
	seen := make(map[int]bool)
	first, f := p.take(100, 104, free)
	if f != nil {
		t.Fatal(f)
	}
	seen[first] = true
	p.give(onLoopback(first), true)
	for last := first; len(seen) < 5; {
		port, f := p.take(100, 104, free)
		if f != nil || seen[port] || port != (last-100+1)%5+100 {
			t.Fatalf("%d after %d: %v", port, last, f)
		}
		seen[port], last = true, port
		p.give(onLoopback(port), true)
	}
	// A port outside that has not been used goes before those that rest.
	port, f := p.take(100, 105, free)
	if f != nil || port != 105 {
		t.Fatalf("%d, %v", port, f)
	}
	now = now.Add(portRest)
	if port, f = p.take(100, 104, free); f != nil {
		t.Fatal(f)
	}
	// One that was never used need not rest.
	p.give(onLoopback(port), false)
	if _, f = p.take(port, port, free); f != nil {
		t.Fatal(f)
	}
}

func TestTakenPortsArePassedOverAndNamedWhenThereAreNoOthers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	for _, listen := range []string{"tcp", "fd"} {
		b := shell("exec sleep 100")
		b.Listen = listen
		bn := open(t, b, func(_ *scaler.Env, l *scaler.LocalOptions) { l.PortFrom, l.PortTo = port, port })
		f, ok := errors.AsType[*scaler.Failure](bn.order(1, time.Second))
		if !ok || f.Reason != scaler.ReasonQuota || f.ForGood || !strings.Contains(f.Detail, "1 are held by other programs") {
			t.Fatalf("%+v", f)
		}
	}
}

// listener starts a process that listens on a port and is not an instance.
func listener(t *testing.T, port int, args ...string) {
	t.Helper()
	args = append(args, "perl", "-MIO::Socket::INET", "-e", `$| = 1; $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$ARGV[0]", Listen => 5, ReuseAddr => 1) or die "$!"; print "listening\n"; sleep 100`, strconv.Itoa(port))
	cmd := exec.Command(args[0], args[1:]...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("%q %v", line, err)
	}
}

func TestAPortOfAnOlderProcessDoesNotCountAsReady(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	// The older process takes the port after it was checked: it waits for its
	// number.
	older := exec.Command("perl", "-MIO::Socket::INET", "-e", `$| = 1; $p = <STDIN>; chomp $p; $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$p", Listen => 5) or die "$!"; print "listening\n"; sleep 100`)
	stdin, err := older.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := older.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := older.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = older.Process.Kill()
		_ = older.Wait()
	})
	// Start times are counted in ticks of 10 ms.
	began, err := readStat(older.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	var in scaler.Instance
	for {
		in = b.one()
		if b.runner.instances[0].child.startTime > began.startTime {
			break
		}
		b.scale(0, in.ID)
		b.awaitEnd(in.ID)
	}
	_, port, _ := strings.Cut(in.Address, ":")
	fmt.Fprintln(stdin, port)
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	err = b.runner.Confirm(t.Context(), in.ID)
	if err == nil || errors.Is(err, scaler.ErrNotYet) || !strings.Contains(err.Error(), strconv.Itoa(older.Process.Pid)) {
		t.Fatalf("confirmed: %v", err)
	}
}

func TestAPortOfTheInstanceOrOfALaterProcessCounts(t *testing.T) {
	perl := `perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => "$ENV{HOST}:$ENV{PORT}", Listen => 5) or die; sleep 100'`
	for how, script := range map[string]string{
		"the main process": "exec " + perl,
		"a child":          perl + " & wait",
		"one in a session": "setsid " + perl + " & wait",
		"a wildcard":       "exec " + strings.Replace(perl, "$ENV{HOST}", "0.0.0.0", 1),
	} {
		b := open(t, shell(script))
		in := b.one()
		eventually(t, how+" to listen", func() bool {
			conn, err := net.Dial("tcp", in.Address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		if err := b.runner.Confirm(t.Context(), in.ID); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}

	// As a container runtime does it: started later, by another process.
	b := open(t, shell("exec sleep 100"))
	in := b.one()
	_, port, _ := strings.Cut(in.Address, ":")
	number, _ := strconv.Atoi(port)
	listener(t, number)
	if err := b.runner.Confirm(t.Context(), in.ID); err != nil {
		t.Errorf("a later process: %v", err)
	}
}
