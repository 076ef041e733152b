package link

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// MaxFrame is the most bytes that a frame may have: 1 MiB.
	MaxFrame = 1 << 20

	// MaxQueued is the most bytes that may wait for a peer: 8 MiB.
	MaxQueued = 8 << 20
)

// ErrClosed says that this side has ended the connection.
var ErrClosed = errors.New("the connection is closed")

// Conn is a connection to another Caddy. Send and Close may be called from any
// goroutine, Receive from one at a time.
type Conn struct {
	peer  Hello
	raw   *tls.Conn
	in    *bufio.Reader
	quiet time.Duration

	mu      sync.Mutex
	queue   []byte // frames that the writer has not taken yet
	err     error  // why it ended
	waiting chan struct{}
	done    chan struct{} // closed when the writer has ended
	forget  func()
}

func newConn(raw *tls.Conn, in *bufio.Reader, peer Hello, quiet time.Duration, forget func()) *Conn {
	c := &Conn{peer: peer, raw: raw, in: in, quiet: quiet, waiting: make(chan struct{}, 1), done: make(chan struct{}), forget: forget}
	go c.write()
	return c
}

// Peer returns what the other side said of itself.
func (c *Conn) Peer() Hello { return c.peer }

// Send puts a frame of 1 to [MaxFrame] bytes behind those that wait, and
// returns at once; it keeps nothing of b. An error means that the connection
// has ended, and that it is not known which of the last frames arrived.
func (c *Conn) Send(b []byte) error {
	if len(b) == 0 || len(b) > MaxFrame {
		return fmt.Errorf("a frame has 1 to %d bytes, not %d", MaxFrame, len(b))
	}
	c.mu.Lock()
	err := c.err
	if err == nil && len(c.queue)+len(b)+4 > MaxQueued {
		err = fmt.Errorf("%s does not read: %d bytes wait for it", c.peer, len(c.queue))
	}
	if err == nil {
		c.queue = appendFrame(c.queue, b)
	}
	c.mu.Unlock()
	if err != nil {
		c.end(err)
		return err
	}
	c.wake()
	return nil
}

func appendFrame(to, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(b))), b...)
}

func (c *Conn) wake() {
	select {
	case c.waiting <- struct{}{}:
	default:
	}
}

// write sends what waits, all of it at once: what came while the frames before
// were written goes as one. In silence it says that this side lives.
func (c *Conn) write() {
	defer close(c.done)
	alive := time.NewTicker(c.quiet / 3)
	defer alive.Stop()
	var out, spare []byte
	for {
		select {
		case <-c.waiting:
		case <-alive.C:
		}
		c.mu.Lock()
		out, c.queue = c.queue, spare[:0]
		ended := c.err != nil
		c.mu.Unlock()
		if ended {
			return
		}
		if len(out) == 0 {
			out = append(out, 0, 0, 0, 0)
		}
		_ = c.raw.SetWriteDeadline(time.Now().Add(c.quiet))
		if _, err := c.raw.Write(out); err != nil {
			c.end(fmt.Errorf("writing to %s: %w", c.peer, err))
			return
		}
		if spare = out; cap(spare) > 64<<10 {
			spare = nil
		}
	}
}

// Receive waits for the next frame. The slice is valid until the next call. An
// error means that the connection has ended: io.EOF if the other side closed it
// between two frames, [ErrClosed] if this one did.
func (c *Conn) Receive() ([]byte, error) {
	for {
		_ = c.raw.SetReadDeadline(time.Now().Add(c.quiet))
		b, err := readFrame(c.in, MaxFrame)
		if err != nil {
			return nil, c.endFor(readError(c.peer, c.quiet, err))
		}
		if len(b) > 0 {
			return b, nil
		}
	}
}

func readError(peer Hello, quiet time.Duration, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s was silent for %v: %w", peer, quiet, err)
	default:
		return fmt.Errorf("reading from %s: %w", peer, err)
	}
}

func readFrame(in *bufio.Reader, most uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return nil, fmt.Errorf("a frame of %d bytes is announced, at most %d are allowed", n, most)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, fmt.Errorf("in a frame: %w", noEOF(err))
	}
	return b, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// end ends the connection for the reason err, if it has not ended before.
func (c *Conn) end(err error) { _ = c.endFor(err) }

// endFor ends it and returns why it has ended: the first reason counts.
func (c *Conn) endFor(err error) error {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = err
	}
	err = c.err
	c.mu.Unlock()
	if first {
		_ = c.raw.NetConn().Close() // not TLS's goodbye, which would wait for a write
		c.wake()
		c.forget()
	}
	return err
}

// Close ends the connection. What waits to be sent is lost. It waits until
// nothing of the connection runs any more.
func (c *Conn) Close() {
	c.end(ErrClosed)
	<-c.done
}
