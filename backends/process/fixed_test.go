//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/test/addr"
)

// fixedPort returns a port that is free, and that no pool of other tests has.
func fixedPort(t *testing.T) int {
	t.Helper()
	return int(addr.Free(t).Port())
}

func TestTheAddressOfAProgramWithAFixedPortIsALoopbackAddress(t *testing.T) {
	t.Setenv("TEST_FIXED_PORT", "3000")
	for address, want := range map[string]string{
		"127.0.0.1:3000": "127.0.0.1:3000", ":3000": "127.0.0.1:3000", "localhost:3000": "127.0.0.1:3000",
		"127.0.0.1:{env.TEST_FIXED_PORT}": "127.0.0.1:3000", "": "",
		"[::1]:3000": "[::1]:3000", "[0:0::1]:{env.TEST_FIXED_PORT}": "[::1]:3000",
	} {
		b := &Backend{Command: "/bin/true", Address: address}
		provision(t, b)
		if got := b.FixedAddress(); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
	for address, words := range map[string]string{
		"3000": "write the host and the port", "0.0.0.0:3000": "write 127.0.0.1:3000", "[::]:3000": "or [::1]:3000", "[::1%lo]:3000": "loopback", "[::ffff:127.0.0.1]:3000": "loopback", "::1:3000": "write the host and the port", "example.com:80": "write 127.0.0.1:80",
		"192.0.2.1:80": "loopback", "127.0.0.1:0": "1 to 65535", "127.0.0.1:x": "1 to 65535", "127.0.0.1:70000": "1 to 65535",
		"127.0.0.1:{usher.port}": "no place", "{env.TEST_NOT_SET_AT_ALL}": "empty", "127.0.0.1:{http.request.port}": "belongs to a request",
	} {
		err := (&Backend{Command: "/bin/true", Address: address}).Provision(caddy.Context{})
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "listen tcp") {
			t.Errorf("%q: %v, want %q", address, err, words)
		}
	}
	err := (&Backend{Command: "/bin/true", Listen: "unix", Address: ":3000"}).Provision(caddy.Context{})
	if err == nil || !strings.Contains(err.Error(), "listen unix takes no address") {
		t.Error(err)
	}
}

func TestTheCaddyfileNamesAFixedAddress(t *testing.T) {
	var b Backend
	if err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser("process x {\n listen tcp 127.0.0.1:3000\n}")); err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(&b); string(got) != `{"command":"x","listen":"tcp","address":"127.0.0.1:3000"}` {
		t.Errorf("%s", got)
	}
	for text, words := range map[string]string{
		"process x {\n listen tcp 3000\n}":                          "write the host and the port",
		"process x {\n listen tcp :1 :2\n}":                         "one address at most",
		"process x {\n listen fd :3000\n}":                          "listen fd takes no address",
		"process x {\n listen unix /run/s\n}":                       "listen unix takes no address",
		"process x {\n listen\n}":                                   "one of tcp, unix, fd",
		"process x {\n listen tcp :1\n listen tcp\n}":               "given twice",
		"process x {\n listen tcp 127.0.0.1:{http.request.port}\n}": "belongs to a request",
	} {
		var b Backend
		err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
}

func TestAProgramWithAFixedPortIsReachedThere(t *testing.T) {
	port := fixedPort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	b := self(t, "serve", "{usher.port}", "{usher.address}")
	b.Address = address
	// No port of the pool is needed, and none is there.
	bn := open(t, b, func(_ *scaler.Env, o *scaler.LocalOptions) { o.PortFrom, o.PortTo = 1, 0 })
	for range 2 { // the port does not rest
		in := bn.one()
		if in.Network != "tcp" || in.Address != address {
			t.Fatalf("it is reported at %s", in.Address)
		}
		eventually(t, "an answer at the fixed port", func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		if err := bn.runner.Confirm(t.Context(), in.ID); err != nil {
			t.Fatalf("not confirmed: %v", err)
		}
		bn.scale(0, in.ID)
		bn.awaitEnd(in.ID)
		eventually(t, "the end of its processes", func() bool {
			bn.runner.mu.Lock()
			defer bn.runner.mu.Unlock()
			return !ports.isUsed(port)
		})
	}
}

func TestAFixedPortThatAnotherProgramHasIsSaid(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := self(t, "serve")
	b.Address = ln.Addr().String()
	bn := open(t, b)
	err = bn.order(1, time.Second)
	f := scaler.AsFailure(err)
	if f == nil || f.Reason != scaler.ReasonConflict || f.ForGood || !strings.Contains(f.Error(), ln.Addr().String()) || !strings.Contains(f.Error(), "listens there already") {
		t.Fatalf("%v", err)
	}
	if len(bn.latest().Instances) != 0 {
		t.Fatal("it was started all the same")
	}
}

// A probe would reach the other program.
func TestAnInstanceThatDoesNotListenOnItsFixedPortIsNotConfirmed(t *testing.T) {
	port := fixedPort(t)
	b := self(t, "stubborn")
	b.Address = fmt.Sprintf("127.0.0.1:%d", port)
	bn := open(t, b)
	in := bn.one()
	ln, err := net.Listen("tcp", b.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := bn.runner.Confirm(t.Context(), in.ID); err == nil && canPassListener { // Linux
		t.Fatal("another program's port is taken for the instance's")
	}
}

func TestAFixedPortIsNotGivenToOthersWhileItsServiceSleeps(t *testing.T) {
	t.Parallel()
	p := newPortPool(time.Now)
	free := func(int) error { return nil }
	end := p.keepFree(100)
	again := p.keepFree(100) // a reload opens the next revision first
	end()
	if port, f := p.take(100, 101, free); f != nil || port != 101 {
		t.Fatalf("port %d, %v", port, f)
	}
	if port, f := p.take(100, 101, free); f == nil {
		t.Fatalf("port %d is given to another instance", port)
	}
	if !p.claim(onLoopback(100)) || p.claim(onLoopback(100)) || p.claim(onLoopback(101)) {
		t.Fatal("a claim is for one instance, and for a port that no other has")
	}
	p.give(onLoopback(100), false)
	again()
	if port, f := p.take(100, 101, free); f != nil || port != 100 {
		t.Fatalf("port %d, %v: it was not given back", port, f)
	}
}

func TestAFixedAddressIsAnotherRevision(t *testing.T) {
	t.Parallel()
	a, b := &Backend{Command: "/bin/true"}, &Backend{Command: "/bin/true", Address: ":3000"}
	provision(t, a)
	provision(t, b)
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("equal fingerprints")
	}
}
