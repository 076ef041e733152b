// Package addr has local addresses for tests: those on which something is to listen
// later, and those that refuse connections. A listener on port 0 that is closed again
// gives neither for sure: the kernel has its port for the next such listener, and for
// connections that go out.
package addr

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// The ports are above those of the test harness and of Usher's own default, and below
// those that the kernel gives away by itself.
const (
	first = 31200
	last  = 32699
)

var ports struct {
	sync.Mutex
	next int
}

// Free returns an address of 127.0.0.1 on which the test can listen, now and again
// later. No two calls of a process return the same one.
func Free(t testing.TB) netip.AddrPort {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.next == 0 {
		// Processes that run side by side begin in different places.
		ports.next = first + os.Getpid()*211%(last-first)
	}
	for range last - first {
		port := ports.next
		if ports.next++; ports.next > last {
			ports.next = first
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		_ = l.Close()
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	}
	t.Fatalf("no port between %d and %d is free", first, last)
	return netip.AddrPort{}
}

// Refusing returns an address of 127.0.0.1 that refuses connections until the test ends:
// a socket has its port, and does not listen.
func Refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		t.Fatalf("the socket has the address %v", name)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
}
