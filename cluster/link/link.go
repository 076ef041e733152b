package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Version is the version of the protocol. Caddys of different versions do not
// share slots.
const Version = 2

// handshakeTime bounds TLS and the hellos.
const handshakeTime = 5 * time.Second

// DefaultSilence is for how long a connection may be silent before it counts
// as broken. Each side says three times as often that it lives.
const DefaultSilence = 5 * time.Second

// maxHello bounds what a Caddy may say of itself.
const maxHello = 4 << 10

// maxHandshakes bounds how many strangers are listened to at a time.
const maxHandshakes = 64

// Hello is what a Caddy says of itself at the beginning of a connection.
type Hello struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"` // the name of the cluster
	ID      string `json:"id"`      // the member
	Boot    string `json:"boot"`    // another one after each start of the process
	Address string `json:"address"` // where it can be reached

	// Purpose is free for those who open the connection. The accepting side's
	// is empty.
	Purpose string `json:"purpose,omitempty"`

	// Refused says in the answer why the connection is not wanted.
	Refused string `json:"refused,omitempty"`
}

func (h Hello) String() string { return fmt.Sprintf("member %s at %s", h.ID, h.Address) }

// Config says how a Caddy is connected to the others.
type Config struct {
	Identity *Identity
	Cluster  string        // the name of the cluster
	ID       string        // this member
	Boot     string        // of this process; never used again
	Address  string        // host and port where the others reach this one
	Silence  time.Duration // default: [DefaultSilence]
	Logger   *slog.Logger

	// Accept gets the connections that others open. It runs on a goroutine of
	// the connection's own, and the connection ends when it returns. Its
	// context ends with [Link.Close].
	Accept func(context.Context, *Conn)
}

// Link connects a Caddy to the others of its cluster. All methods may be called
// from any goroutine.
type Link struct {
	c        Config
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	pending  chan struct{}

	mu      sync.Mutex
	conns   map[*Conn]struct{}
	reached map[reached]bool
	told    map[string]bool // strangers that the log has already
}

// reached is a process that answered at an address.
type reached struct{ address, id, boot string }

// Listen accepts connections on listener until Close, which closes it.
func Listen(listener net.Listener, c Config) *Link {
	if c.Silence <= 0 {
		c.Silence = DefaultSilence
	}
	l := &Link{
		c: c, listener: listener, pending: make(chan struct{}, maxHandshakes),
		conns: make(map[*Conn]struct{}), reached: make(map[reached]bool), told: make(map[string]bool),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.running.Go(l.accept)
	return l
}

// Close ends all connections and waits until nothing runs any more.
func (l *Link) Close() {
	l.cancel()
	_ = l.listener.Close()
	l.mu.Lock()
	for c := range l.conns {
		go c.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}

func (l *Link) accept() {
	for pause := time.Duration(0); l.ctx.Err() == nil; {
		raw, err := l.listener.Accept()
		if err != nil {
			if l.ctx.Err() != nil {
				return
			}
			if pause == 0 {
				l.c.Logger.Error("other members cannot connect", slog.Any("error", err))
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.wait(pause)
			continue
		}
		pause = 0
		select {
		case l.pending <- struct{}{}:
			l.running.Go(func() { l.welcome(raw) })
		default:
			_ = raw.Close()
		}
	}
}

func (l *Link) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	}
}

// welcome makes a connection that another Caddy opened.
func (l *Link) welcome(raw net.Conn) {
	conn, err := func() (*Conn, error) {
		defer func() { <-l.pending }()
		return l.shake(l.ctx, raw, tls.Server, "")
	}()
	if err != nil {
		l.tell(raw, err)
		return
	}
	defer conn.Close()
	l.c.Accept(l.ctx, conn)
}

// tell logs why a connection was not made: once for each address and reason.
func (l *Link) tell(raw net.Conn, err error) {
	if l.ctx.Err() != nil || errors.Is(err, io.EOF) {
		return // a check of the port
	}
	host, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
	what := host + err.Error()
	l.mu.Lock()
	known := l.told[what]
	if len(l.told) < 1000 {
		l.told[what] = true
	}
	l.mu.Unlock()
	if !known {
		l.c.Logger.Warn("a connection from another member was refused", slog.String("from", host), slog.Any("error", err))
	}
}

// Dial opens a connection to the member at address. If id is not empty another
// member that answers there is an error.
func (l *Link) Dial(ctx context.Context, address, id, purpose string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connecting to the member at %s: %w", address, err)
	}
	conn, err := l.shake(ctx, raw, tls.Client, purpose)
	if err != nil {
		return nil, fmt.Errorf("connecting to the member at %s: %w", address, err)
	}
	if got := conn.Peer(); id != "" && got.ID != id {
		conn.Close()
		return nil, fmt.Errorf("the address %s of member %s is answered by member %s: check 'advertise' of both", address, id, got.ID)
	}
	l.note(address, conn.Peer())
	return conn, nil
}

func (l *Link) note(address string, peer Hello) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.reached {
		if r.address == address && (r.id != peer.ID || r.boot != peer.Boot) {
			delete(l.reached, r)
		}
	}
	l.reached[reached{address, peer.ID, peer.Boot}] = true
}

// shake makes a connection of raw: TLS, then the hellos.
func (l *Link) shake(ctx context.Context, raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, purpose string) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, err := l.greet(ctx, raw, side, purpose)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func (l *Link) greet(ctx context.Context, raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, purpose string) (*Conn, error) {
	_ = raw.SetDeadline(time.Now().Add(handshakeTime))
	config, err := l.c.Identity.config()
	if err != nil {
		return nil, err
	}
	secure := side(raw, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		linger(raw)
		return nil, l.c.Identity.explain(err)
	}
	own := Hello{Version: Version, Cluster: l.c.Cluster, ID: l.c.ID, Boot: l.c.Boot, Address: l.c.Address, Purpose: purpose}
	in := bufio.NewReader(secure)
	peer, err := l.exchange(secure, in, own)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Time{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return nil, ErrClosed
	}
	var conn *Conn
	conn = newConn(secure, in, peer, l.c.Silence, func() {
		l.mu.Lock()
		delete(l.conns, conn)
		l.mu.Unlock()
	})
	l.conns[conn] = struct{}{}
	return conn, nil
}

// linger lets the other side read why a handshake failed: a connection that is
// closed with something unread may lose what was sent last.
func linger(raw net.Conn) {
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = raw.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, raw, 64<<10)
}

// exchange sends the own hello and reads the other's. Then each side says
// whether it accepts, so that both know of a refusal and its reason.
func (l *Link) exchange(w io.Writer, in *bufio.Reader, own Hello) (Hello, error) {
	if err := sayHello(w, own); err != nil {
		return Hello{}, l.c.Identity.explain(err)
	}
	peer, err := hearHello(in)
	if err != nil {
		return Hello{}, l.c.Identity.explain(err)
	}
	mine := l.objection(peer)
	if err := sayHello(w, Hello{Refused: mine}); err != nil {
		return Hello{}, err
	}
	// The other's verdict is read in any case: a connection that is closed with
	// something unread may lose what was sent last.
	verdict, err := hearHello(in)
	switch {
	case mine != "":
		return Hello{}, &RefusedError{Peer: peer, Why: mine}
	case err != nil:
		return Hello{}, err
	case verdict.Refused != "":
		return Hello{}, &RefusedError{Peer: peer, Why: verdict.Refused, ByPeer: true}
	}
	return peer, nil
}

func sayHello(w io.Writer, h Hello) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encoding the hello: %w", err)
	}
	if len(b) > maxHello {
		return fmt.Errorf("the hello has %d bytes, at most %d are allowed: shorten the name of the cluster", len(b), maxHello)
	}
	_, err = w.Write(appendFrame(nil, b))
	return err
}

func hearHello(in *bufio.Reader) (h Hello, err error) {
	b, err := readFrame(in, maxHello)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("the other side does not speak Usher's protocol: %w", err)
	}
	return h, nil
}

// objection says why a Caddy is no peer, or nothing.
func (l *Link) objection(peer Hello) string {
	switch {
	case peer.Version != Version:
		return fmt.Sprintf("the versions of the protocol differ: %s has %d, %s has %d; use the same Usher on all Caddys of a cluster", l.c.ID, Version, peer.ID, peer.Version)
	case peer.Cluster != l.c.Cluster:
		return fmt.Sprintf("the clusters differ: %s belongs to '%s', %s to '%s'", l.c.ID, l.c.Cluster, peer.ID, peer.Cluster)
	case peer.ID == "" || peer.Boot == "" || peer.Address == "":
		return "a hello needs an id, a boot id and an address"
	case peer.ID == l.c.ID && peer.Boot != l.c.Boot:
		return fmt.Sprintf("two Caddys call themselves %s", peer.ID)
	}
	return ""
}

// RefusedError says that one side of a connection did not accept the other.
type RefusedError struct {
	Peer   Hello
	Why    string
	ByPeer bool // the other side refused
}

func (e *RefusedError) Error() string {
	if e.ByPeer {
		return fmt.Sprintf("%s refused: %s", e.Peer, e.Why)
	}
	return e.Why
}

// explain says what an error of the handshake means. TLS tells one side in a
// word only what the other side found.
func (id *Identity) explain(err error) error {
	if stranger, ok := errors.AsType[*StrangerError](err); ok {
		return stranger
	}
	if remote, ok := errors.AsType[*net.OpError](err); !ok || remote.Op != "remote error" {
		return err
	}
	if id.secret {
		return &StrangerError{"the other side did not accept this one: its secret is another one", err}
	}
	return &StrangerError{"the other side did not accept this one's certificate", err}
}

// Dead tells whether the process that member id ran with this boot id is proven
// to have ended. It is, if this Caddy has reached that very process at address
// before, and now
//
//   - the connection is refused there, or
//   - the same member answers there with another boot id.
//
// Everything else proves nothing: no answer, an address that this Caddy never
// reached, another member behind it. Where something between two Caddys refuses
// connections in the name of a living one, as a load balancer does, it must not
// be used as the address of a member.
//
// The error says what stands against a proof.
func (l *Link) Dead(ctx context.Context, address, id, boot string) (bool, error) {
	l.mu.Lock()
	known := l.reached[reached{address, id, boot}]
	l.mu.Unlock()
	if !known {
		return false, fmt.Errorf("member %s was never reached at %s by this one, so nothing there proves its end", id, address)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("asking for member %s: %w", id, err)
	}
	conn, err := l.shake(ctx, raw, tls.Client, PurposeProof)
	if err != nil {
		return false, fmt.Errorf("asking for member %s: %w", id, err)
	}
	defer conn.Close()
	switch peer := conn.Peer(); {
	case peer.ID != id:
		return false, fmt.Errorf("the address %s of member %s is answered by member %s", address, id, peer.ID)
	case peer.Boot == boot:
		return false, fmt.Errorf("member %s answers at %s", id, address)
	}
	return true, nil
}

// PurposeProof is the purpose of connections that only ask who answers.
const PurposeProof = "proof"

// ErrOtherProcess says that at the address of a member another process of its
// name answers.
var ErrOtherProcess = errors.New("another process answers there in the name of the member: two Caddys have the same 'advertise', or it was started again")

// Reach makes sure that the process can be reached at its address, so that its
// end can be proven later.
func (l *Link) Reach(ctx context.Context, peer Hello) error {
	l.mu.Lock()
	known := l.reached[reached{peer.Address, peer.ID, peer.Boot}]
	l.mu.Unlock()
	if known {
		return nil
	}
	conn, err := l.Dial(ctx, peer.Address, peer.ID, PurposeProof)
	if err == nil {
		if conn.Peer().Boot != peer.Boot {
			err = ErrOtherProcess
		}
		conn.Close()
	}
	if err != nil {
		return fmt.Errorf("%s cannot be reached at the address that it advertises: %w", peer, err)
	}
	return nil
}
