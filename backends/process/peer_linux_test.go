package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// Ids of users other than Caddy's. The users need not exist.
const (
	someUser  = 65534
	otherUser = 65533
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
}

// shortDir is a directory for sockets that every user may pass through.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usher")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

const perlUnix = `exec perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die "$!"; while (1) { $c = $s->accept; push @all, $c }' {usher.socket}`

// reach connects to the address and lets the runner check the peer.
func (b *bench) reach(in scaler.Instance) error {
	b.t.Helper()
	var conn net.Conn
	eventually(b.t, "a connection to "+in.Address, func() bool {
		var err error
		conn, err = net.Dial(in.Network, in.Address)
		return err == nil
	})
	defer conn.Close()
	return b.runner.CheckPeer(in.ID, conn)
}

// An instance of another user owns the directory of its socket.
func TestALinkInPlaceOfTheSocketLeadsNowhere(t *testing.T) {
	needRoot(t)
	t.Setenv("RUNTIME_DIRECTORY", shortDir(t))
	b := shell(perlUnix)
	b.User, b.Listen = "nobody", listenUnix
	bn := open(t, b)
	in := bn.await("an address", bn.one().ID, func(in scaler.Instance) bool { return in.Address != "" })
	if err := bn.reach(in); err != nil {
		t.Fatalf("its own socket: %v", err)
	}
	pinned, release, err := bn.runner.Pin(in.ID)
	if err != nil {
		t.Fatal(err)
	}

	rootOnly := filepath.Join(shortDir(t), "s")
	ln, err := net.Listen("unix", rootOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Rename(in.Address, in.Address+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(rootOnly, in.Address); err != nil {
		t.Fatal(err)
	}
	err = bn.reach(in)
	if err == nil || !strings.Contains(err.Error(), "root") || !strings.Contains(err.Error(), in.ID) {
		t.Errorf("the link was followed: %v", err)
	}
	if _, _, err := bn.runner.Pin(in.ID); err == nil {
		t.Error("the link was pinned")
	}
	// What was pinned before leads to the instance still.
	conn, err := net.Dial("unix", pinned)
	if err != nil {
		t.Fatal(err)
	}
	if err := bn.runner.CheckPeer(in.ID, conn); err != nil {
		t.Errorf("the pinned socket: %v", err)
	}
	conn.Close()
	release()
	if conn, err := net.Dial("unix", pinned); err == nil {
		conn.Close()
		t.Error("the pinned address outlives its release")
	}

	// A hard link to the other socket is no better.
	if err := os.Remove(in.Address); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(rootOnly, in.Address); err == nil {
		if err := bn.reach(in); err == nil {
			t.Error("the hard link was followed")
		}
		if _, _, err := bn.runner.Pin(in.ID); err == nil {
			t.Error("the hard link was pinned")
		}
	}
}

// as returns a command that runs as a user.
func as(uid int, args ...string) []string {
	id := strconv.Itoa(uid)
	return append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups"}, args...)
}

func portNumber(t *testing.T, in scaler.Instance) int {
	t.Helper()
	port, err := strconv.Atoi(portOf(t, in))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestAPortTakenByAnotherUserLeadsNowhere(t *testing.T) {
	needRoot(t)
	for name, user := range map[string]string{"an instance of root": "", "an instance of another user": "nobody"} {
		t.Run(name, func(t *testing.T) {
			b := shell("exec sleep 100")
			b.User = user
			bn := open(t, b)
			in := bn.one()
			// Later than the instance: its time of start tells nothing.
			listener(t, portNumber(t, in), as(otherUser)...)
			err := bn.reach(in)
			if err == nil || !strings.Contains(err.Error(), strconv.Itoa(otherUser)) {
				t.Errorf("it was taken for the instance: %v", err)
			}
			if err := bn.runner.Confirm(t.Context(), in.ID); err == nil {
				t.Error("a probe of it was confirmed")
			}
			if _, _, err := bn.runner.Pin(in.ID); err == nil {
				t.Error("its address was pinned")
			}
		})
	}
}

// With the same rights another program may still be the wrong one.
func TestAPortTakenByAnotherInstanceLeadsNowhere(t *testing.T) {
	bn := open(t, shell("exec sleep 100"))
	in := bn.one()
	listener(t, portNumber(t, in), "env", varInstance+"="+newID())
	if err := bn.reach(in); err == nil || !strings.Contains(err.Error(), "of instance") {
		t.Errorf("it was taken for the instance: %v", err)
	}
}

func TestAPortTakenAfterTheInstanceHasServedLeadsNowhere(t *testing.T) {
	needRoot(t)
	perl := `perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => "$ENV{HOST}:$ENV{PORT}", Listen => 5, ReuseAddr => 1) or die; $SIG{USR1} = sub { close $s; open F, ">", $ARGV[0]; close F }; sleep 1 while 1' `
	closed := filepath.Join(t.TempDir(), "closed")
	bn := open(t, shell("exec "+perl+closed))
	in := bn.one()
	if err := bn.reach(in); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(bn.pid(in.ID), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the instance to close its socket", func() bool { _, err := os.Stat(closed); return err == nil })
	listener(t, portNumber(t, in), as(someUser)...)
	if err := bn.reach(in); err == nil {
		t.Error("the other program was taken for the instance")
	}
}

func TestAnInstanceThatGivesUpItsRightsIsReached(t *testing.T) {
	needRoot(t)
	perl := `perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => "$ENV{HOST}:$ENV{PORT}", Listen => 5) or die; sleep 100'`
	for how, script := range map[string]string{
		"with an exec":        "exec " + strings.Join(as(someUser), " ") + " " + perl,
		"in a child":          strings.Join(as(someUser), " ") + " " + perl + " & wait",
		"in another session":  "setsid " + strings.Join(as(someUser), " ") + " " + perl + " & wait",
		"without its own env": "env -i HOST=$HOST PORT=$PORT PATH=$PATH " + strings.Join(as(someUser), " ") + " " + perl + " & wait",
	} {
		t.Run(how, func(t *testing.T) {
			bn := open(t, shell(script))
			in := bn.one()
			if err := bn.reach(in); err != nil {
				t.Error(err)
			}
		})
	}
}

func init() {
	// a Caddy that starts one instance, prints its port, and checks the peer
	// when asked
	roles["peers"] = func(args []string) int {
		b := shell("exec sleep 100")
		if err := b.Provision(caddy.Context{}); err != nil {
			fmt.Println(err)
			return 1
		}
		s, err := b.Open(scaler.Env{
			Service: "web", Revision: "r1", Logger: quiet,
			Host: &scaler.Host{DataDir: args[0], Local: func() scaler.LocalOptions {
				return scaler.LocalOptions{PortFrom: 26000, PortTo: 26999}
			}},
			Report: func(scaler.Report) {},
		})
		if err == nil {
			err = s.Scale(context.Background(), scaler.Order{Instances: 1})
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		r := s.(*runner)
		in := r.instances[0]
		fmt.Println("port", in.port)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		network, address := in.where()
		conn, err := net.Dial(network, address)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("peer:", r.CheckPeer(in.id, conn))
		_ = r.Close(context.Background(), 0)
		return 0
	}
}

// A Caddy that is not root cannot see what files the processes of others have
// open. Whose a socket is, it can.
func TestAPortTakenByAnotherUserIsSeenWithoutRoot(t *testing.T) {
	needRoot(t)
	for thief, taken := range map[int]bool{otherUser: true, someUser: false} {
		t.Run(fmt.Sprintf("user %d", thief), func(t *testing.T) {
			dir := shortDir(t)
			binary := publicBinary(t, dir)
			data := filepath.Join(dir, "data")
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(data, someUser, someUser); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(binary, "child", "peers", data)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someUser, Gid: someUser}, Pdeathsig: syscall.SIGKILL}
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
			var port int
			if _, err := fmt.Fscanf(out, "port %d\n", &port); err != nil {
				t.Fatal(err)
			}
			listener(t, port, as(thief)...)
			fmt.Fprintln(stdin)
			answer, _ := io.ReadAll(out)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%s: %v", answer, err)
			}
			if noticed := !strings.HasPrefix(string(answer), "peer: <nil>"); noticed != taken {
				t.Errorf("%s", answer)
			}
		})
	}
}

// publicBinary copies this test binary to where every user can execute it.
func publicBinary(t *testing.T, dir string) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "test")
	if err := os.WriteFile(copied, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

func TestTheTablesAndTheKernelTellTheSameOfASocket(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0", "[::]:0 by IPv6"} {
		where, v6, _ := strings.Cut(address, " by ")
		ln, err := net.Listen("tcp", where)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		defer ln.Close()
		at := ln.Addr().(*net.TCPAddr).AddrPort()
		if v6 != "" {
			at = netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
		} else if at.Addr().IsUnspecified() {
			at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
		}
		asked, err := findSocket(at, netip.AddrPort{})
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		read, err := listenerInTables(at)
		if err != nil || read != asked || int(asked.uid) != os.Geteuid() || asked.inode == 0 {
			t.Errorf("%s: asked %+v, read %+v, %v", address, asked, read, err)
		}
		if !holdsSocket(os.Getpid(), asked.inodes()) {
			t.Errorf("%s: it is not this process's", address)
		}
		ln.Close()
		if _, err := findListener(at); err != errNoSocket {
			t.Errorf("%s: after its end: %v", address, err)
		}
	}
}

// Whether the table of IPv4 was read first must not decide which one is found.
func TestASocketOfIPv4IsNotTakenForOneOfIPv6(t *testing.T) {
	needIPv6(t)
	v4, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer v4.Close()
	at := netip.AddrPortFrom(netip.IPv6Loopback(), uint16(v4.Addr().(*net.TCPAddr).Port))
	for how, find := range map[string]func(netip.AddrPort) (tcpSocket, error){"the kernel": findListener, "the tables": listenerInTables} {
		if s, err := find(at); err != errNoSocket {
			t.Errorf("%s: %+v, %v", how, s, err)
		}
	}
	v6, err := net.Listen("tcp6", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer v6.Close()
	asked, err1 := findListener(at)
	read, err2 := listenerInTables(at)
	other, err3 := findListener(onLoopback(int(at.Port())))
	if err := errors.Join(err1, err2, err3); err != nil || asked != read || asked == other {
		t.Errorf("asked %+v, read %+v, that of IPv4 is %+v: %v", asked, read, other, err)
	}
}

func BenchmarkFindListener(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	for b.Loop() {
		if _, err := findListener(at); err != nil {
			b.Fatal(err)
		}
	}
}
