package kubernetes

import (
	"context"
	"net"
	"sync"
	"time"
)

// connections are those of one store. The zero value has none. Its methods may
// be called at the same time.
type connections struct {
	mu    sync.Mutex
	all   map[*conn]bool
	ended bool // there will be no more
}

// conn is a connection that is known until it is closed.
type conn struct {
	net.Conn
	of *connections
}

func (cs *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	inner, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{inner, cs}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.ended {
		inner.Close()
		return nil, errClosed
	}
	if cs.all == nil {
		cs.all = make(map[*conn]bool)
	}
	cs.all[c] = true
	return c, nil
}

// closeAll closes the connections that there are.
func (cs *connections) closeAll() {
	cs.mu.Lock()
	all := cs.all
	cs.all = nil
	cs.mu.Unlock()
	for c := range all {
		c.Conn.Close()
	}
}

// end closes the connections, and every later one.
func (cs *connections) end() {
	cs.mu.Lock()
	cs.ended = true
	cs.mu.Unlock()
	cs.closeAll()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.all, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
