//go:build unix

package process

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// needIPv6 skips a test on a machine without an address of IPv6.
func needIPv6(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
	ln.Close()
}

// fixedAddress6 is an address of IPv6 that is free, with IPv4 as well.
func fixedAddress6(t *testing.T) netip.AddrPort {
	t.Helper()
	needIPv6(t)
	return netip.AddrPortFrom(netip.IPv6Loopback(), uint16(fixedPort(t)))
}

func TestAProgramThatListensOnIPv6OnlyIsReachedThere(t *testing.T) {
	at := fixedAddress6(t)
	b := self(t, "serve")
	b.Address = at.String()
	bn := open(t, b, func(_ *scaler.Env, o *scaler.LocalOptions) { o.PortFrom, o.PortTo = 1, 0 })
	for range 2 { // the port does not rest
		in := bn.one()
		if in.Network != "tcp" || in.Address != at.String() {
			t.Fatalf("it is reported at %s", in.Address)
		}
		var conn net.Conn
		eventually(t, "a connection", func() bool {
			var err error
			conn, err = net.Dial(in.Network, in.Address)
			return err == nil
		})
		if err := bn.runner.Confirm(t.Context(), in.ID); err != nil {
			t.Errorf("the probe is not confirmed: %v", err)
		}
		if err := bn.runner.CheckPeer(in.ID, conn); err != nil {
			t.Errorf("the connection is refused: %v", err)
		}
		if address, _, err := bn.runner.Pin(in.ID); err != nil || address != in.Address {
			t.Errorf("pinned at %q: %v", address, err)
		}
		conn.Close()
		bn.scale(0, in.ID)
		bn.awaitEnd(in.ID)
		eventually(t, "the end of its processes", func() bool {
			ports.mu.Lock()
			defer ports.mu.Unlock()
			return !ports.used[at]
		})
	}
}

// The same port of IPv4 is not the instance's.
func TestAProgramOnIPv6IsToldApartFromWhatHasItsPortOnIPv4(t *testing.T) {
	at := fixedAddress6(t)
	other, err := net.Listen("tcp", onLoopback(int(at.Port())).String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b := self(t, "serve")
	b.Address = at.String()
	bn := open(t, b)
	in := bn.one()
	eventually(t, "an answer", func() bool {
		conn, err := net.Dial("tcp", in.Address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err := bn.runner.Confirm(t.Context(), in.ID); err != nil {
		t.Errorf("not confirmed: %v", err)
	}
}

func TestAnIPv6PortTakenByAnotherProgramLeadsNowhere(t *testing.T) {
	if !canCheckPeers {
		t.Skip("this system does not show whose a connection is")
	}
	at := fixedAddress6(t)
	b := self(t, "stubborn")
	b.Address = at.String()
	bn := open(t, b)
	in := bn.one()
	ln, err := net.Listen("tcp", at.String()) // by this process, which ran before
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := bn.runner.Confirm(t.Context(), in.ID); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("a probe of it was confirmed: %v", err)
	}
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := bn.runner.CheckPeer(in.ID, conn); err == nil {
		t.Error("the connection was taken for one to the instance")
	}
}

func TestAnIPv6AddressThatAnotherProgramHasIsSaid(t *testing.T) {
	needIPv6(t)
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := self(t, "serve")
	b.Address = ln.Addr().String()
	err = open(t, b).order(1, time.Second)
	if f := scaler.AsFailure(err); f == nil || f.Reason != scaler.ReasonConflict || !strings.Contains(f.Error(), ln.Addr().String()) || !strings.Contains(f.Error(), "listens there already") {
		t.Errorf("%v", err)
	}
}

func TestOnePortOfBothFamiliesIsForTwoInstances(t *testing.T) {
	t.Parallel()
	p := newPortPool(time.Now)
	v6 := netip.AddrPortFrom(netip.IPv6Loopback(), 100)
	if !p.claim(onLoopback(100)) || !p.claim(v6) || p.claim(v6) {
		t.Fatal("an address is for one instance, and the same port of another address for another one")
	}
	p.give(v6, false)
	if !p.claim(v6) || p.claim(onLoopback(100)) {
		t.Fatal("the wrong address was given back")
	}
}
