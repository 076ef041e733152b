package caddymodule

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// Another process of this machine can take the port of an instance, and an
// instance can put a link in the place of its socket. So the platform looks at
// each new connection before anything is written to it. Requests on connections
// that exist already cost nothing.

// dialsInstance returns the network and the address of the instance, if a
// transport that asks for addr asks for a connection to it.
func dialsInstance(ctx context.Context, addr string) (network, address string, ok bool) {
	info, ok := reverseproxy.GetDialInfo(ctx)
	if !ok {
		return "", "", false
	}
	network = info.Network
	if strings.HasPrefix(network, "unix") {
		return "unix", info.Address, true
	}
	// Else this is a connection to a forward proxy.
	return network, info.Address, asksFor(addr, info.Address)
}

// asksFor says whether a transport that asks for addr asks for a connection to
// address. Where Caddy speaks the PROXY protocol, it makes one host of the client
// and the address: `client->host:port`, escaped. http.Transport adds the port of
// the scheme to that. Caddy has left this port out of the address.
func asksFor(addr, address string) bool {
	if addr == address {
		return true
	}
	colon := strings.LastIndexByte(addr, ':')
	if colon < 0 {
		return false
	}
	both, err := url.QueryUnescape(addr[:colon])
	if err != nil {
		return false
	}
	_, host, ok := strings.Cut(both, "->")
	return ok && (host == address || net.JoinHostPort(host, addr[colon+1:]) == address)
}

// checkBeforeDial tells whether the address leads to the instance now. It is
// for dials that write something before checkPeer can see the connection. If
// the address changes hands between the two, that much is sent, and no request.
func (q *request) checkBeforeDial(ctx context.Context, addr string) error {
	network, address, ok := dialsInstance(ctx, addr)
	if !ok {
		return nil
	}
	_, release, err := q.service.Loop.Pin(network, address)
	if err != nil {
		logAstray(q.service, address, err)
		return err
	}
	release()
	return nil
}

// checkPeer tells whether a connection that a transport has just made for the
// request leads to the instance that it was made for. addr is what the transport
// asked for.
func (q *request) checkPeer(ctx context.Context, addr string, conn net.Conn) error {
	network, address, ok := dialsInstance(ctx, addr)
	if !ok {
		return nil
	}
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = c.NetConn() // TLS
	}
	err := q.service.Loop.CheckPeer(network, address, conn)
	if err != nil {
		logAstray(q.service, address, err)
	}
	return err
}

// pinInstance gets, for a transport that shows no connections, an address that
// leads to nothing but the instance of the request until the attempt is over.
// An instance without one counts as one that refuses connections: the request
// goes to another. If there is none, it has no instance afterwards.
func (q *request) pinInstance(transport http.RoundTripper) (dial string) {
	for q.refusal == nil && q.reservation.Instance() != nil {
		dial, err := q.pin(transport)
		if err == nil {
			return dial
		}
		q.attempt.Load().outcome = refused
		q.again()
	}
	return ""
}

func (q *request) pin(transport http.RoundTripper) (dial string, err error) {
	q.endPin()
	network, address := q.instance.Network, q.instance.Address
	pinned, release, err := q.service.Loop.Pin(network, address)
	if err == nil && pinned != address {
		// Others than this one may keep connections under the address, which
		// later means another socket.
		if _, ok := transport.(*fastcgi.Transport); !ok {
			release()
			err = errUnknownTransport
		}
	}
	if err != nil {
		logAstray(q.service, address, err)
		return "", err
	}
	q.unpin = release
	return hub.DialAddress(network, pinned), nil
}

// endPin releases what pin has got.
func (q *request) endPin() {
	if q.unpin != nil {
		q.unpin()
		q.unpin = nil
	}
}

// errUnknownTransport tells that it cannot be made sure whom a transport
// reaches.
var errUnknownTransport = errors.New("the socket belongs to another user, and Usher cannot see where this transport connects to; use the transport http or fastcgi, listen tcp, or leave user out")

// astrayPause is how often it is logged that connections lead elsewhere.
const astrayPause = time.Second

// logAstray says that an instance is not to be reached at its address.
func logAstray(s *hub.Service, address string, err error) {
	now := time.Now().UnixNano()
	last := s.Astray.Load()
	if now-last < int64(astrayPause) || !s.Astray.CompareAndSwap(last, now) {
		return
	}
	s.Log().Warn("a connection does not lead to the instance: nothing is sent on it, and the instance gets no request until a probe reaches it",
		zap.String("address", address), zap.Error(err))
}
