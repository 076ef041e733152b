package coordinatortest

import (
	"net"
	"sync"
	"testing"
)

// A proxy forwards TCP connections to a server, and breaks them as it is told.
// It ends with the test.
type proxy struct {
	address string

	server   string
	listener net.Listener
	life     sync.WaitGroup

	mu     sync.Mutex
	links  map[*link]bool
	deaf   bool // for new connections, too
	budget int  // bytes until all connections are cut; negative: no limit
	passed int  // bytes, in both directions
	closed bool
}

// link is one connection, from both sides.
type link struct {
	client, server net.Conn
	deaf           bool // what the server sends is not passed on
}

func startProxy(t testing.TB, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), server: server, listener: l, links: make(map[*link]bool), budget: -1}
	p.life.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		l.deaf = p.deaf
		p.links[l] = true
		if p.closed {
			p.cutLocked()
		}
		p.mu.Unlock()
		p.life.Go(func() { p.copy(l, client, server) })
		p.life.Go(func() { p.copy(l, server, client) })
	}
}

// copy passes on what comes from one side to the other.
func (p *proxy) copy(l *link, from, to net.Conn) {
	defer func() {
		l.client.Close()
		l.server.Close()
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.passed += n
		drop := l.deaf && from == l.server
		if p.budget >= 0 {
			if p.budget -= n; p.budget <= 0 {
				// The last bytes before the cut still arrive.
				n = max(0, n+p.budget)
				_, _ = to.Write(buf[:n])
				p.budget = -1
				p.cutLocked()
			}
		}
		p.mu.Unlock()
		if drop {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// stall lets no more of what the server says through on the connections that
// there are.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.deaf = true
	}
}

// deafen does the same, and on new connections, too.
func (p *proxy) deafen() {
	p.stall()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = true
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

func (p *proxy) cutLocked() {
	for l := range p.links {
		l.client.Close()
		l.server.Close()
	}
}

// cutAfter ends all connections when so many more bytes have passed.
func (p *proxy) cutAfter(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = bytes
}

// traffic returns how many bytes have passed.
func (p *proxy) traffic() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.cutLocked()
	p.mu.Unlock()
	p.life.Wait()
}
