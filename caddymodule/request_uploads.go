package caddymodule

import (
	"errors"
	"net"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

const (
	// sharedMax is how much is read ahead of the bodies of one connection.
	sharedMax = 16 << 20
	// windowSpare is how much may come of a body that is not read: the window
	// of an HTTP/2 connection is 1 MiB.
	windowSpare = 128 << 10
	// crowdPatience is how long a held upload may stop the others of its
	// connection.
	crowdPatience = time.Second
)

var errUploadTooLarge = errors.New("the upload is too large to be held while others use its connection")

// readAhead bounds what is read ahead of the bodies of held requests. It is
// shared by all handlers, across configurations.
type readAhead struct {
	held    atomic.Int64 // bytes
	uploads uploads
}

type readAheadKey struct{}

func readAheadOf(h *hub.Hub) *readAhead {
	return h.Attach(readAheadKey{}, func() any { return new(readAhead) }).(*readAhead)
}

// uploads are the connections on which several uploads can be under way at
// once, those of HTTP/2 and HTTP/3. What is sent of a body and not read
// counts against the window of the connection: one held upload takes all of
// it, and the others of the connection stop. So the bodies of held requests
// are read ahead, as far as memory is granted; and one for which there is no
// more room is refused, if another one needs the connection.
type uploads struct {
	mu sync.Mutex
	of map[connKey]*sharedConn
}

// connKey is a connection: net/http makes an address of its own for each of
// them, and for the others the client's makes the difference.
type connKey struct {
	local  net.Addr
	remote string
}

// sharedConn is one of them. Its methods may be called on nil.
type sharedConn struct {
	all *uploads
	key connKey

	// guarded by the lock of all
	open  map[*requestBody]chan struct{} // bodies that have not ended, and how to refuse each that waits
	stuck map[*requestBody]struct{}      // those that are held and not read
	held  int64
	timer *time.Timer
}

// join takes note of the upload of r. It returns nil for one that has its
// connection for itself.
func (u *uploads) join(b *requestBody, r *http.Request) {
	if r.ProtoMajor < 2 {
		return
	}
	if _, ok := r.Body.(*requestBody); ok {
		// An error route leads to a service again: it is the same upload.
		return
	}
	key := connKey{remote: r.RemoteAddr}
	if local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr); local != nil && reflect.TypeOf(local).Comparable() {
		key.local = local
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.of[key]
	if c == nil {
		if u.of == nil {
			u.of = make(map[connKey]*sharedConn)
		}
		c = &sharedConn{all: u, key: key, open: make(map[*requestBody]chan struct{}), stuck: make(map[*requestBody]struct{})}
		u.of[key] = c
	}
	c.open[b] = nil
	b.shared = c
	c.look()
}

// leave takes note that the connection is of no more use to the body.
func (c *sharedConn) leave(b *requestBody) {
	if c == nil {
		return
	}
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	delete(c.open, b)
	delete(c.stuck, b)
	c.look()
	c.forget()
}

// forget drops a connection without uploads. The lock is held.
func (c *sharedConn) forget() {
	if len(c.open) == 0 && c.held == 0 && c.all.of[c.key] == c {
		delete(c.all.of, c.key)
	}
}

// charge asks for room for n bytes, or gives it back.
func (c *sharedConn) charge(n int64) bool {
	if c == nil {
		return true
	}
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if n > 0 && c.held+n > sharedMax {
		return false
	}
	c.held += n
	c.forget()
	return true
}

// full takes note that a held body is not read any more.
func (c *sharedConn) full(b *requestBody) {
	if c == nil {
		return
	}
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if _, ok := c.open[b]; ok {
		c.stuck[b] = struct{}{}
		c.look()
	}
}

// served takes note that the request does not wait any more.
func (c *sharedConn) served(b *requestBody) {
	if c == nil {
		return
	}
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	delete(c.stuck, b)
	c.look()
}

// refused returns the channel that is closed when the upload has to go. It is
// called before the wait.
func (c *sharedConn) refused(b *requestBody) <-chan struct{} {
	if c == nil {
		return nil
	}
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	refused, ok := c.open[b]
	if ok && refused == nil {
		refused = make(chan struct{})
		c.open[b] = refused
	}
	return refused
}

// look begins or ends the patience with those that are stuck. The lock is
// held.
func (c *sharedConn) look() {
	crowded := len(c.stuck) > 0 && len(c.open) > 1
	switch {
	case crowded && c.timer == nil:
		var timer *time.Timer
		timer = time.AfterFunc(crowdPatience, func() { c.refuse(&timer) })
		c.timer = timer
	case !crowded && c.timer != nil:
		c.timer.Stop()
		c.timer = nil
	}
}

// refuse lets one of those that are stuck go. It is the timer's, unless that
// has been replaced.
func (c *sharedConn) refuse(timer **time.Timer) {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if c.timer != *timer {
		return
	}
	c.timer = nil
	for b := range c.stuck {
		if refused := c.open[b]; refused != nil {
			close(refused)
		}
		delete(c.open, b)
		delete(c.stuck, b)
		break
	}
	c.look()
}
