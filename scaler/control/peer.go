package control

import (
	"net"

	"github.com/caddy-usher/usher/scaler"
)

// peerCheck returns what looks at new connections to i, or nil. The lock is
// held.
func (i *instance) peerCheck() func(net.Conn) error {
	c, ok := i.revision.scaler.(scaler.PeerChecker)
	if !ok {
		return nil
	}
	id := i.ID
	return func(conn net.Conn) error { return c.CheckPeer(id, conn) }
}

// CheckPeer tells whether a new connection leads to the instance that is at the
// address it was made for. Nothing may be written to it before. Where the
// platform cannot tell, all is well.
func (l *Loop) CheckPeer(network, address string, conn net.Conn) error {
	c, id := l.peerChecker(network, address)
	switch {
	case c == nil:
		return nil
	case id == "":
		return ErrGone
	}
	return c.CheckPeer(id, conn)
}

// Pin returns an address that leads to nothing but the instance that is at the
// given one, until release is called: see PeerChecker.
func (l *Loop) Pin(network, address string) (pinned string, release func(), err error) {
	c, id := l.peerChecker(network, address)
	switch {
	case c == nil:
		return address, func() {}, nil
	case id == "":
		return "", nil, ErrGone
	}
	return c.Pin(id)
}

// peerChecker finds the instance at an address. If there is none, the checker
// is that of the current revision.
func (l *Loop) peerChecker(network, address string) (c scaler.PeerChecker, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.revisions {
		for _, i := range r.instances {
			if i.Network == network && i.Address == address {
				c, _ = r.scaler.(scaler.PeerChecker)
				return c, i.ID
			}
		}
	}
	if len(l.revisions) > 0 {
		c, _ = l.current().scaler.(scaler.PeerChecker)
	}
	return c, ""
}
