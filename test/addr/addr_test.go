package addr_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/addr"
)

func TestOnAFreeAddressTheTestCanListenAgainAndAgain(t *testing.T) {
	seen := make(map[netip.AddrPort]bool)
	for range 50 {
		at := addr.Free(t)
		if seen[at] {
			t.Fatalf("%v twice", at)
		}
		seen[at] = true
		for range 2 {
			l, err := net.Listen("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}

func TestARefusingAddressRefusesAndCannotBeTaken(t *testing.T) {
	at := addr.Refusing(t).String()
	if c, err := net.DialTimeout("tcp", at, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connected to %v: %v", c, err)
	}
	if l, err := net.Listen("tcp", at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listens at %v: %v", l, err)
	}
}
