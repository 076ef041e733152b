package link

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
)

// network is a proxy between two Caddys that can stop carrying anything, as a
// network that is cut does: nothing is closed, nothing arrives.
type network struct {
	address string
	mu      sync.Mutex
	isCut   bool
	conns   []net.Conn
}

// wire starts a proxy in front of address.
func wire(t *testing.T, address string) *network {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &network{address: listener.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", address)
			if err != nil {
				from.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, from, to)
			w.mu.Unlock()
			running.Go(func() { w.carry(to, from) })
			running.Go(func() { w.carry(from, to) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		running.Wait()
	})
	return w
}

func (w *network) cut() {
	w.mu.Lock()
	w.isCut = true
	w.mu.Unlock()
}

func (w *network) carry(to, from net.Conn) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		w.mu.Lock()
		isCut := w.isCut
		w.mu.Unlock()
		if isCut && err == nil {
			continue // what was read is lost
		}
		if n > 0 && !isCut {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if half, ok := to.(*net.TCPConn); ok && err == io.EOF && !isCut {
				_ = half.CloseWrite()
			}
			return
		}
	}
}

// speak opens an encrypted connection by hand.
func speak(t *testing.T, address string) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	identity, err := FromSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	config, err := identity.config()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, bufio.NewReader(conn)
}
