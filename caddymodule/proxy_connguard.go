package caddymodule

import (
	"net"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

// connGuard checks whether a new connection leads to an instance. It is needed
// where the platform can give the instance's address to something else before
// Usher learns that the instance has ended.
//
// A connection stays with the process that accepted it, so a good connection
// remains good. A new connection is good if another good one is open at that
// time: the process that holds it lives, and no other process can have its
// port. Without an open one, a new connection is good for a short while after
// the instance was verified. Otherwise the instance is suspected: nothing is
// written to the connection, and the request waits for the next verification.
//
// Only TCP connections are checked. Others, such as those of HTTP/3 or to a
// forward proxy, are accepted.
type connGuard struct {
	instance *reserver.Instance

	// doubted is true if a new connection was not good. Until the instance is
	// verified, only known connections are used, because the transport also
	// keeps connections that it has made and not used.
	doubted atomic.Bool

	mu        sync.Mutex
	doubtedAt time.Time
	conns     []knownConn
	verified  time.Time // when the instance was last verified; the fields below are since then
	died      bool      // a known connection, since then
	early     bool      // suspected although it had just been verified
	hasty     bool      // its server closes connections soon
}

const (
	// verifyLease is how long a verification of an instance counts. A server
	// that closes its connections can pass as alive for no longer than this
	// after its end.
	verifyLease = time.Second
	// knownConnsMax is how many connections are kept. One open one is enough.
	knownConnsMax = 64
)

// guardOf returns the guard of an instance, or nil if it needs none.
func guardOf(i *reserver.Instance) *connGuard {
	if !i.AddressReusable() {
		return nil
	}
	if g, ok := i.Notes.Load().(*connGuard); ok {
		return g
	}
	i.Notes.CompareAndSwap(nil, &connGuard{instance: i})
	return i.Notes.Load().(*connGuard)
}

// dialedTo tells whether a connection to an address can be one to the instance.
// The instance's host can be a name.
func (g *connGuard) dialedTo(addr string) bool {
	if addr == g.instance.Address {
		return true
	}
	host, port, err := net.SplitHostPort(g.instance.Address)
	return err == nil && net.ParseIP(host) == nil && strings.HasSuffix(addr, ":"+port)
}

// dialed notes that the transport has made a connection, or is about to, and
// returns whether it is good. Which request will use it is not known yet.
func (g *connGuard) dialed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.good() {
		return true
	}
	g.doubt()
	return false
}

// admits tells whether a request may be written to the connection.
func (g *connGuard) admits(info httptrace.GotConnInfo) bool {
	raw := rawTCP(info.Conn)
	if raw == nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.doubted.Load() && g.instance.VerifiedAt().After(g.doubtedAt) {
		g.doubted.Store(false)
	}
	switch {
	case slices.ContainsFunc(g.conns, func(l knownConn) bool { return l.conn == info.Conn }):
		return true
	case info.Reused:
		return !g.doubted.Load()
	case !g.good():
		g.doubt()
		return false
	}
	if len(g.conns) < knownConnsMax {
		g.conns = append(g.conns, knownConn{info.Conn, raw})
	}
	return true
}

// good tells whether a new connection is good. The lock is held.
func (g *connGuard) good() bool {
	if proven := g.instance.VerifiedAt(); proven.After(g.verified) {
		// Connections that died before do not matter now. If the instance was
		// suspected wrongly right after the last verification, its server closes
		// connections soon.
		g.verified, g.died = proven, false
		g.conns = slices.DeleteFunc(g.conns, knownConn.dead)
		g.hasty = g.hasty || g.early
		g.early = false
	}
	for k, l := range slices.Backward(g.conns) {
		if l.alive() {
			return true
		}
		if l.dead() {
			g.conns = slices.Delete(g.conns, k, k+1)
			g.died = true
		}
	}
	age := time.Since(g.verified)
	if age > verifyLease || g.died && !g.hasty {
		return false
	}
	if age > verifyLease/2 {
		// Verify again before this verification is too old.
		g.instance.RequestVerify()
	}
	return true
}

func (g *connGuard) doubt() {
	g.doubtedAt = time.Now()
	g.doubted.Store(true)
	g.early = g.doubtedAt.Sub(g.verified) <= verifyLease
}

// knownConn is a good connection.
type knownConn struct {
	conn net.Conn
	raw  syscall.RawConn
}

// alive tells whether the other side still holds the connection, as far as the
// kernel knows.
func (l knownConn) alive() bool { return l.look() == connAlive }

// dead tells whether either side has closed the connection.
func (l knownConn) dead() bool { return l.look() == connDead }

type connState uint8

const (
	connDead   connState = iota
	connSilent           // the other side owes an acknowledgment
	connAlive
)

func (l knownConn) look() connState {
	state := connDead
	if err := l.raw.Control(func(fd uintptr) { state = lookAt(fd) }); err != nil {
		return connDead // the transport has closed it
	}
	return state
}

// rawTCP returns the TCP connection below conn, or nil if there is none.
func rawTCP(conn net.Conn) syscall.RawConn {
	c, ok := plainTCP(conn).(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// plainTCP returns the TCP connection below conn, or nil. It may still be wrapped.
func plainTCP(conn net.Conn) net.Conn {
	if conn == nil {
		return nil
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn() // TLS
	}
	if _, ok := conn.LocalAddr().(*net.TCPAddr); !ok {
		return nil
	}
	return conn
}

// toInstance tells whether a connection to the address is for the request's
// instance. Other requests made on the way are no attempts, for example one
// that authorizes the request, or one of a `handle_response` route.
func (q *request) toInstance(addr string) bool {
	return asksFor(addr, q.address)
}

// gotConn is called when the transport has a connection for an attempt, before
// it writes to it. If the connection may lead elsewhere, gotConn closes it: then
// nothing can be written, and the attempt fails.
func (q *request) gotConn(info httptrace.GotConnInfo) {
	a := q.attempt.Load()
	if !a.sending.Load() {
		return
	}
	a.connected.Store(true)
	if !q.service.MayWrite() {
		a.unleased.Store(true)
		a.withheld.Store(true)
		q.body.withhold(true)
		_ = info.Conn.Close()
		return
	}
	if q.guard == nil || !a.direct || info.Reused && !q.guard.doubted.Load() && !a.withheld.Load() {
		return
	}
	ok := q.guard.admits(info)
	if a.withheld.Swap(!ok) {
		// The transport has retried by itself.
		a.wrote.Store(false)
	}
	q.body.withhold(!ok)
	if !ok {
		_ = plainTCP(info.Conn).Close()
	}
}

// dials are the guards of the instances that a request may have connected to.
type dials struct {
	first  atomic.Pointer[connGuard]
	mu     sync.Mutex
	others []*connGuard
}

func (d *dials) add(g *connGuard) {
	if d.first.CompareAndSwap(nil, g) || d.first.Load() == g {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others = append(d.others, g)
}

// done notes that the transport has connected to the address.
func (d *dials) done(addr string) {
	g := d.first.Load()
	if g == nil {
		return
	}
	if g.dialedTo(addr) {
		g.dialed()
	}
	d.mu.Lock()
	others := d.others
	d.mu.Unlock()
	for _, g := range others {
		if g.dialedTo(addr) {
			g.dialed()
		}
	}
}
