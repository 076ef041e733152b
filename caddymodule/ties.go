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

// ties are the connections to an instance whose address can be given to
// something else before it is known that the instance has ended. They tell
// whether a new connection leads to the instance.
//
// A connection stays with the process that accepted it, so one that was good
// once is good for ever. A new one is good if another good one is open when it
// has come about: the process that holds that one lives, and nobody else can
// have its port. If there is none, it is good for a short while after somebody
// has vouched for the instance. Else the instance is doubted: nothing is
// written to the connection, and the request waits until somebody has vouched.
//
// This is about TCP; other connections, as those of HTTP/3, are taken as they
// are, and so are those to a forward proxy.
type ties struct {
	instance *reserver.Instance

	// doubted is true if a new connection was found doubtful. Until somebody
	// vouches for the instance, connections that are not among links are not
	// used: the transport keeps those, too, that it has made and not used.
	doubted atomic.Bool

	mu        sync.Mutex
	doubtedAt time.Time
	links     []link
	known     time.Time // of which word for the instance the rest is
	died      bool      // a link, since then
	early     bool      // the doubt came although the word was new
	hasty     bool      // its server closes connections soon
}

const (
	// tieLease is how long somebody's word for an instance counts. It is the
	// longest for which a server that closes its connections can be taken for
	// alive without being so.
	tieLease = time.Second
	// tiesMax is how many links are kept: one that lives is enough.
	tiesMax = 64
)

// tiesOf returns the ties of an instance, or nil if it needs none.
func tiesOf(i *reserver.Instance) *ties {
	if !i.Unbound {
		return nil
	}
	if t, ok := i.Notes.Load().(*ties); ok {
		return t
	}
	i.Notes.CompareAndSwap(nil, &ties{instance: i})
	return i.Notes.Load().(*ties)
}

// leadTo says whether a connection to an address may be one to the instance,
// which can have a name for its host.
func (t *ties) leadTo(addr string) bool {
	if addr == t.instance.Address {
		return true
	}
	host, port, err := net.SplitHostPort(t.instance.Address)
	return err == nil && net.ParseIP(host) == nil && strings.HasSuffix(addr, ":"+port)
}

// dialled is told that a connection has come about, or is about to: whether
// anybody will use it, and who, is not known yet. It returns whether it is
// good.
func (t *ties) dialled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.good() {
		return true
	}
	t.doubt()
	return false
}

// admits says whether a request may be written to the connection.
func (t *ties) admits(info httptrace.GotConnInfo) bool {
	raw := rawTCP(info.Conn)
	if raw == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.doubted.Load() && t.instance.Proven().After(t.doubtedAt) {
		t.doubted.Store(false)
	}
	switch {
	case slices.ContainsFunc(t.links, func(l link) bool { return l.conn == info.Conn }):
		return true
	case info.Reused:
		return !t.doubted.Load()
	case !t.good():
		t.doubt()
		return false
	}
	if len(t.links) < tiesMax {
		t.links = append(t.links, link{info.Conn, raw})
	}
	return true
}

// good says whether a connection that has just come about is good. The lock is
// held.
func (t *ties) good() bool {
	if proven := t.instance.Proven(); proven.After(t.known) {
		// Those that have died before tell nothing any more. If the last word
		// was doubted at once, and wrongly, this is how its server is.
		t.known, t.died = proven, false
		t.links = slices.DeleteFunc(t.links, link.dead)
		t.hasty = t.hasty || t.early
		t.early = false
	}
	for k, l := range slices.Backward(t.links) {
		if l.alive() {
			return true
		}
		if l.dead() {
			t.links = slices.Delete(t.links, k, k+1)
			t.died = true
		}
	}
	age := time.Since(t.known)
	if age > tieLease || t.died && !t.hasty {
		return false
	}
	if age > tieLease/2 {
		// The next word comes before this one is too old.
		t.instance.Question()
	}
	return true
}

func (t *ties) doubt() {
	t.doubtedAt = time.Now()
	t.doubted.Store(true)
	t.early = t.doubtedAt.Sub(t.known) <= tieLease
}

// link is a connection that is good.
type link struct {
	conn net.Conn
	raw  syscall.RawConn
}

// alive says whether the other side holds the connection, for all that the
// kernel knows.
func (l link) alive() bool { return l.look() == linkAlive }

// dead says whether either side has closed it.
func (l link) dead() bool { return l.look() == linkDead }

type linkState uint8

const (
	linkDead   linkState = iota
	linkSilent           // the other side has not acknowledged what it should
	linkAlive
)

func (l link) look() linkState {
	state := linkDead
	if err := l.raw.Control(func(fd uintptr) { state = lookAt(fd) }); err != nil {
		return linkDead // the transport has closed it
	}
	return state
}

// rawTCP returns the TCP connection below conn, or nil if that is none.
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

// plainTCP returns the TCP connection below conn, or nil. It may be wrapped.
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

// toInstance says whether a transport that asks for a connection to the address
// asks for one to the instance of the request: what else is sent on its way, to
// authorize it, say, or after a response that was handled, is no attempt. Caddy
// puts the client before the address where it speaks the PROXY protocol.
func (q *request) toInstance(addr string) bool {
	return addr == q.address || strings.HasSuffix(addr, "->"+q.address)
}

// gotConn is called when the transport has a connection for an attempt, before
// it writes to it. If it is not known where that leads it is closed, so that
// nothing can be written, and the attempt fails.
func (q *request) gotConn(info httptrace.GotConnInfo) {
	a := &q.attempt
	a.connected.Store(true)
	if q.ties == nil || !a.direct || info.Reused && !q.ties.doubted.Load() && !a.withheld.Load() {
		return
	}
	ok := q.ties.admits(info)
	if a.withheld.Swap(!ok) {
		// The transport has tried again by itself.
		a.wrote.Store(false)
	}
	q.body.withhold(!ok)
	if !ok {
		_ = plainTCP(info.Conn).Close()
	}
}

// dials are the instances to which a request may have had connections made.
type dials struct {
	first  atomic.Pointer[ties]
	mu     sync.Mutex
	others []*ties
}

func (d *dials) add(t *ties) {
	if d.first.CompareAndSwap(nil, t) || d.first.Load() == t {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others = append(d.others, t)
}

// done is told that a connection to the address has come about.
func (d *dials) done(addr string) {
	t := d.first.Load()
	if t == nil {
		return
	}
	if t.leadTo(addr) {
		t.dialled()
	}
	d.mu.Lock()
	others := d.others
	d.mu.Unlock()
	for _, t := range others {
		if t.leadTo(addr) {
			t.dialled()
		}
	}
}
