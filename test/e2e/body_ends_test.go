package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// handshake is an upgrade with a body before the first frame.
type handshake struct {
	body    string
	chunked bool
	parts   int
}

// frame is a masked message "hello", and answer is its echo. A mask of zeros
// changes nothing.
const (
	frame  = "\x81\x85\x00\x00\x00\x00hello"
	answer = "\x81\x05hello"
)

// send says what a client sees of the upgrade: the status, and whether the
// stream carries its messages in both directions and ends with the other side.
func (h handshake) send(c *harness.Caddy, released <-chan struct{}, path string) outcome {
	conn, from, err := dialSite(c)
	if err != nil {
		return outcome{then: err.Error()}
	}
	defer conn.Close()
	framing := ""
	u := upload{size: len(h.body), chunked: h.chunked, parts: h.parts}
	switch {
	case h.chunked:
		framing = "Transfer-Encoding: chunked\r\n"
	case h.body != "":
		framing = fmt.Sprintf("Content-Length: %d\r\n", len(h.body))
	}
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", path, framing)
	if err == nil && framing != "" {
		err = u.write(conn, released, h.body, "")
	}
	if err != nil {
		return outcome{then: ending(err)}
	}
	res, err := final(from)
	if err != nil {
		return outcome{then: ending(err)}
	}
	o := outcome{status: res.StatusCode}
	for range 2 {
		if _, err := conn.Write([]byte(frame)); err != nil {
			o.then = ending(err)
			return o
		}
		got := make([]byte, len(answer))
		for i := range got {
			if got[i], err = from.ReadByte(); err != nil {
				o.then = ending(err)
				return o
			}
		}
		o.body += string(got)
		time.Sleep(partPause)
	}
	// Opcode 8 ends the stream.
	_, _ = conn.Write([]byte("\x88\x80\x00\x00\x00\x00"))
	for err == nil {
		var b byte
		if b, err = from.ReadByte(); err == nil {
			o.body += string(b)
		}
	}
	o.then = ending(err)
	return o
}

// An upgraded stream works as behind a plain reverse_proxy, with a body before
// it and without one.
func TestUpgradesWithBodiesAreAsWithAPlainProxy(t *testing.T) {
	c := newCaddy(t)
	runApp(t, c)
	c.Start(harness.Config{Site: "handle_path /plain/* {\n\treverse_proxy " + c.SpareAddr + "\n}\nhandle {\n" +
		harness.Usher("web", c.Backend("-gate", c.Path("gate"))) + "\n}"})
	all := []handshake{{}}
	for _, size := range []int{1, 65536, 65537, 100_000} {
		for _, chunked := range []bool{false, true} {
			for _, parts := range []int{1, 3} {
				all = append(all, handshake{strings.Repeat("x", size), chunked, parts})
			}
		}
	}
	cold := sendHeld(t, c, len(all), func(i int, released <-chan struct{}) outcome { return all[i].send(c, released, "/ws") })
	for i, h := range all {
		shape := fmt.Sprintf("%d bytes in %d, chunked %v", len(h.body), h.parts, h.chunked)
		plain := h.send(c, now, "/plain/ws")
		if plain.status != http.StatusSwitchingProtocols || !strings.HasPrefix(plain.body, answer+answer) {
			t.Errorf("%s, plain: %+v", shape, plain)
		}
		if warm := h.send(c, now, "/ws"); warm != plain {
			t.Errorf("%s, warm: %+v, plain: %+v", shape, warm, plain)
		}
		if cold[i] != plain {
			t.Errorf("%s, cold: %+v, plain: %+v", shape, cold[i], plain)
		}
	}
}

// A client that leaves in the middle of its body leaves nothing behind: no
// place in the queue, no slot, no request in the instance, and no body that
// the instance takes for whole.
func TestUploadsThatBreakOffLeaveNothing(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Site: harness.Usher("web", c.Backend("-gate", c.Path("gate")))})
	type shape struct {
		size           int
		chunked, reset bool
	}
	var all []shape
	noticed := 0 // uploads whose end Usher sees while it holds them
	for _, size := range []int{1000, 65536, 300_000} {
		for _, chunked := range []bool{false, true} {
			for _, reset := range []bool{false, true} {
				all = append(all, shape{size, chunked, reset})
				if size <= 65536 {
					noticed++
				}
			}
		}
	}
	begin := func(s shape) *harness.Conn {
		conn := c.Dial()
		u := upload{size: s.size / 2, parts: 1}
		part := u.body("/echo")
		if s.chunked {
			conn.SendHead("POST", "/echo", "Transfer-Encoding: chunked")
			part = fmt.Sprintf("%x\r\n%s\r\n", len(part), part)
		} else {
			conn.SendHead("POST", "/echo", fmt.Sprintf("Content-Length: %d", s.size))
		}
		// Of a long body only a part is taken before the grant.
		go func() { _, _ = conn.Write([]byte(part)) }()
		return conn
	}
	leave := func(conn *harness.Conn, s shape) {
		if s.reset {
			conn.Abort()
		} else {
			_ = conn.Close()
		}
	}
	nothingLeft := func(when string) {
		t.Helper()
		harness.Eventually(t, soon, func() bool {
			s, j := c.Service("web"), c.Journal()
			return s.Waiting == 0 && s.Slots.InUse == 0 && s.Instances.Ejected == 0 && len(j.Of("begin")) == len(j.Of("end"))
		}, "%s: nothing is left", when)
	}

	conns := make([]*harness.Conn, len(all))
	for i, s := range all {
		conns[i] = begin(s)
	}
	c.AwaitWaiting("web", len(all))
	time.Sleep(partPause)
	var left sync.WaitGroup
	for i, s := range all {
		left.Go(func() { leave(conns[i], s) })
	}
	left.Wait()
	harness.Eventually(t, soon, func() bool { return c.Service("web").Waiting <= len(all)-noticed }, "the broken uploads have left the queue")
	c.Open("gate")
	wantOK(t, c.Get("/"))
	nothingLeft("cold")

	for _, s := range all {
		conn := begin(s)
		harness.Eventually(t, soon, func() bool { return c.Service("web").Slots.InUse == 1 }, "the upload has a slot")
		leave(conn, s)
		nothingLeft("warm")
	}
	wantOK(t, c.Get("/"))
	wantNothingSmuggled(t, c)
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
}
