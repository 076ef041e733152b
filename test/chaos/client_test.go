package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// patience is how long a client waits for the end of anything. It only
// runs out if a request was forgotten.
const patience = 40 * time.Second

// downPause is how long a client leaves a Caddy alone that does not run.
const downPause = 200 * time.Millisecond

// A client sends one request after the other, drawn from its own random
// numbers.
type client struct {
	town   *town
	ledger *ledger
	rng    *rand.Rand
	name   string
	pause  time.Duration // between two requests, on average
	h2     *http.Client

	conn       net.Conn // kept alive
	in         *bufio.Reader
	generation int // of the configuration that the connection is to
}

// load lets n clients send until stop is closed.
func load(w *town, l *ledger, seed uint64, n int, pause time.Duration, stop <-chan struct{}) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	for k := range n {
		c := &client{
			town: w, ledger: l, rng: rand.New(rand.NewPCG(seed, uint64(k)+1)),
			name: fmt.Sprintf("c%d", k), pause: pause,
		}
		wg.Go(func() { c.run(stop) })
	}
	return wg
}

func (c *client) run(stop <-chan struct{}) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	c.h2 = &http.Client{Transport: transport, Timeout: patience}
	defer transport.CloseIdleConnections()
	defer c.hangUp()
	for k := 0; ; k++ {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.rng.Int64N(int64(2*c.pause) + 1))):
		}
		c.one(fmt.Sprintf("%s-%d", c.name, k))
	}
}

func (c *client) hangUp() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// one sends one request and enters its record.
func (c *client) one(seq string) {
	t := c.draw()
	r := &record{seq: seq, service: services[c.rng.IntN(len(services))], what: t.what, method: t.method}
	r.quiet = c.rng.IntN(20) == 0
	r.h2 = c.rng.IntN(8) == 0 && !t.socket
	var leave time.Duration
	if c.rng.IntN(6) == 0 {
		leave = time.Duration(c.rng.Int64N(int64(1500 * time.Millisecond)))
	}
	var body io.Reader
	if t.send > 0 {
		body = &pattern{left: t.send}
	}
	req, err := http.NewRequest(t.method, "http://"+c.town.c.Addr+"/"+r.service+t.path, body)
	if err != nil {
		panic(err)
	}
	req.ContentLength = t.send
	if t.chunked {
		req.ContentLength = -1
	}
	req.Header.Set("X-Seq", seq)
	if r.quiet {
		req.Header.Set("X-Quiet", "1")
	}
	// What is decided is decided here: how long things take must not change
	// what the next random number is for.
	keep, reset := c.rng.IntN(3) > 0, c.rng.IntN(2) == 0

	r.began = time.Now()
	c.ledger.enter(r)
	if r.h2 {
		c.overHTTP2(r, req, t, leave)
	} else {
		c.overHTTP1(r, req, t, leave, keep, reset)
	}
}

// overHTTP2 leaves the connection to the standard library, which sends again
// only what the server says not to have processed.
func (c *client) overHTTP2(r *record, req *http.Request, t task, leave time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o := &outcome{record: r}
	if leave > 0 {
		timer := time.AfterFunc(leave, func() { o.leave(cancel) })
		defer timer.Stop()
	}
	if g, _ := c.town.generation(); g != c.generation {
		// The connection is to the configuration of before, which answers as
		// long as it does not know that.
		c.h2.CloseIdleConnections()
		c.hangUp()
		c.generation = g
	}
	res, err := c.h2.Do(req.WithContext(ctx))
	if err == nil {
		o.head(res)
		err = o.take(t, res)
		res.Body.Close()
	}
	o.settle(err)
}

// overHTTP1 writes and reads itself: nothing is sent twice behind its back,
// and it is known whether a byte of an answer came.
func (c *client) overHTTP1(r *record, req *http.Request, t task, leave time.Duration, keep, reset bool) {
	o := &outcome{record: r}
	// A configuration that went took its idle connections with it.
	g, changing := c.town.generation()
	if g != c.generation {
		c.h2.CloseIdleConnections()
		c.hangUp()
		c.generation = g
	}
	keep = keep && !changing
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.town.c.Addr, 5*time.Second)
		if err != nil {
			o.settle(err)
			time.Sleep(downPause) // no Caddy is running
			return
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	conn := c.conn
	_ = conn.SetDeadline(time.Now().Add(patience))
	if leave > 0 {
		timer := time.AfterFunc(leave, func() {
			o.leave(func() {
				if reset {
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
				conn.Close()
			})
		})
		defer timer.Stop()
	}
	if t.socket {
		o.settle(c.webSocket(o, req, t))
		c.hangUp()
		return
	}
	wrote := make(chan error, 1)
	go func() { wrote <- req.Write(conn) }()
	res, err := http.ReadResponse(c.in, req)
	if err == nil {
		o.head(res)
		err = o.take(t, res)
		// After an error the server may give up on the rest of the body, and on
		// the connection with it.
		keep = keep && !res.Close && res.StatusCode == http.StatusOK
	}
	o.settle(err)
	if err != nil || !keep || r.left {
		c.hangUp()
	}
	select {
	case werr := <-wrote:
		if werr != nil {
			c.hangUp()
		}
	default:
		c.hangUp() // the answer did not wait for the rest of the body
		<-wrote
	}
}

// outcome settles what became of a request: the answer, or that the client
// left, whichever comes first.
type outcome struct {
	mu      sync.Mutex
	record  *record
	settled bool
}

func (o *outcome) leave(how func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.settled {
		return
	}
	o.settled = true
	o.record.left, o.record.over = true, time.Now()
	how()
}

func (o *outcome) head(res *http.Response) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.settled {
		return
	}
	r := o.record
	r.status, r.code, r.instance = res.StatusCode, res.Header.Get("Usher-Error"), res.Header.Get("X-Instance")
	r.retry, r.store = res.Header.Get("Retry-After"), res.Header.Get("Cache-Control")
}

func (o *outcome) settle(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.settled {
		return
	}
	o.settled = true
	o.record.over = time.Now()
	if wrong := (*wrongAnswer)(nil); errors.As(err, &wrong) {
		o.record.wrong = wrong.text
	} else {
		o.record.err = err
	}
}

// take reads an answer and holds it against what the task expects.
func (o *outcome) take(t task, res *http.Response) error {
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		o.mu.Lock()
		defer o.mu.Unlock()
		if !o.settled {
			o.record.body = string(body)
		}
		return err
	}
	return t.want(res.Body)
}

// wrongAnswer is an answer that is whole and is not the right one.
type wrongAnswer struct{ text string }

func (w *wrongAnswer) Error() string { return w.text }

// webSocket opens a websocket, sends messages, which come back, and closes it.
func (c *client) webSocket(o *outcome, req *http.Request, t task) error {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Sec-WebSocket-Version", "13")
	req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	if err := req.Write(c.conn); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.in, req)
	if err != nil {
		return err
	}
	o.head(res)
	if res.StatusCode != http.StatusSwitchingProtocols {
		return o.take(t, res)
	}
	for k := range t.messages {
		if err := c.echo(0x81, strings.Repeat("m", 1+k)); err != nil {
			return err
		}
		time.Sleep(t.every)
	}
	return c.echo(0x88, "") // close
}

// echo sends a frame and reads the same one back.
func (c *client) echo(kind byte, message string) error {
	// A mask of zeros changes nothing, and is allowed.
	frame := append([]byte{kind, 0x80 | byte(len(message)), 0, 0, 0, 0}, message...)
	if _, err := c.conn.Write(frame); err != nil {
		return err
	}
	want := append([]byte{kind, byte(len(message))}, message...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.in, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return &wrongAnswer{fmt.Sprintf("sent the message %q, got the frame %q", message, got)}
	}
	return nil
}
