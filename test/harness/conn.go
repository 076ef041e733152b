package harness

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A Conn is a client's connection on which a test writes what it likes:
// half a body, nothing, or an upgrade.
type Conn struct {
	net.Conn

	t testing.TB
	r *bufio.Reader
}

// Dial connects to the site.
func (c *Caddy) Dial() *Conn {
	c.t.Helper()
	conn, err := net.DialTimeout("tcp", c.Addr, 5*time.Second)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return &Conn{Conn: conn, t: c.t, r: bufio.NewReader(conn)}
}

// Send writes a text as it is, with line ends as HTTP wants them.
func (c *Conn) Send(lines ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")); err != nil {
		c.t.Fatal(err)
	}
}

// SendHead writes a request line and header fields, and the empty line.
func (c *Conn) SendHead(method, path string, fields ...string) {
	c.t.Helper()
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: localhost"}, fields...)
	c.Send(strings.Join(lines, "\r\n") + "\r\n\r\n")
}

// Receive reads one answer, whole.
func (c *Conn) Receive(timeout time.Duration) Response {
	start := time.Now()
	if err := c.SetReadDeadline(start.Add(timeout)); err != nil {
		return Response{Err: err, Header: make(http.Header)}
	}
	p := new(Pending)
	p.fill(http.ReadResponse(c.r, nil))
	p.res.Took = time.Since(start)
	return p.res
}

// Abort closes the connection with a reset, as a killed client's kernel or a
// dropped network does.
func (c *Conn) Abort() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// A Burst is a number of requests, each on its own connection, whose order
// of arrival is known.
type Burst struct {
	Conns   []*Conn
	answers []chan Response
}

// Burst sends n requests to a service that holds them. Each has its number
// in X-Seq, and the next is sent only when Usher says that the one before
// stands in the queue, so the order is certain.
func (c *Caddy) Burst(service string, n int, path string) *Burst {
	c.t.Helper()
	b := new(Burst)
	before := c.Service(service).Waiting
	for i := range n {
		conn := c.Dial()
		conn.SendHead(http.MethodGet, path, "X-Seq: "+strconv.Itoa(i), "Connection: close")
		b.Conns = append(b.Conns, conn)
		Eventually(c.t, Slow(5*time.Second), func() bool { return c.Service(service).Waiting >= before+i+1 },
			"request %d stands in the queue", i)
	}
	for _, conn := range b.Conns {
		answer := make(chan Response, 1)
		b.answers = append(b.answers, answer)
		go func() { answer <- conn.Receive(Slow(60 * time.Second)) }()
	}
	return b
}

// Wait returns the answers, in the order of the requests.
func (b *Burst) Wait(t testing.TB, timeout time.Duration) []Response {
	t.Helper()
	deadline := time.After(timeout)
	all := make([]Response, len(b.answers))
	for i, answer := range b.answers {
		select {
		case all[i] = <-answer:
		case <-deadline:
			t.Fatalf("request %d of %d has no answer after %s", i, len(b.answers), timeout)
		}
	}
	return all
}

// A WebSocket is the client's end of a websocket.
type WebSocket struct{ conn *Conn }

// WebSocket opens a websocket and returns when the handshake is done, which
// may take a cold start.
func (c *Caddy) WebSocket(path string, timeout time.Duration) *WebSocket {
	c.t.Helper()
	conn := c.Dial()
	key := make([]byte, 16)
	_, _ = rand.Read(key)
	conn.SendHead(http.MethodGet, path, "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: "+base64.StdEncoding.EncodeToString(key))
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	res, err := http.ReadResponse(conn.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		c.t.Fatalf("websocket: status %d", res.StatusCode)
	}
	return &WebSocket{conn}
}

// Echo sends a message and checks that it comes back.
func (w *WebSocket) Echo(message string) error {
	if err := w.conn.SetDeadline(time.Now().Add(Slow(5 * time.Second))); err != nil {
		return err
	}
	if len(message) > 125 {
		return fmt.Errorf("message of %d bytes", len(message))
	}
	// A mask of zeros changes nothing, and is allowed.
	frame := append([]byte{0x81, 0x80 | byte(len(message)), 0, 0, 0, 0}, message...)
	if _, err := w.conn.Write(frame); err != nil {
		return err
	}
	answer := binary.BigEndian.AppendUint16(nil, 0x8100|uint16(len(message)))
	answer = append(answer, message...)
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(w.conn.r, got); err != nil {
		return err
	}
	if !bytes.Equal(got, answer) {
		return fmt.Errorf("sent %q, got frame %q", message, got)
	}
	return nil
}

// AwaitEnd waits until the other side ends the websocket.
func (w *WebSocket) AwaitEnd(timeout time.Duration) error {
	if err := w.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, w.conn.r)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return err
	}
	return nil // closed or reset
}

// Close ends the websocket from the client's side.
func (w *WebSocket) Close() { w.conn.Close() }
