package e2e

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// released checks that no request is inside or waits, and that every slot of
// web is free again.
func released(t *testing.T, c *harness.Caddy, slots int) {
	t.Helper()
	harness.Eventually(t, soon, func() bool {
		s := c.Service("web")
		return s.Slots.InUse == 0 && s.Waiting == 0
	}, "no request is inside or waits")
	before := len(c.Journal().Of("begin"))
	var all []*harness.Pending
	for range slots {
		all = append(all, c.Send(harness.Request{Path: hold(c, "released")}))
	}
	inside(t, c, before+slots)
	c.Open("released")
	for _, p := range all {
		wantOK(t, p.Wait(t, soon))
	}
}

func TestG3_EveryReservationIsReleasedHoweverItEnds(t *testing.T) {
	c := newCaddy(t)
	const slots = 4
	c.Start(web(c, nil, "instances 0 1", "concurrency "+strconv.Itoa(slots), "wait_timeout 300ms"))
	c.Post("web/wake", "") // so short a wait can end before a start
	c.AwaitReady("web", 1, soon)

	ends := map[string]func(){
		"normal": func() { c.Get("/") },
		"error":  func() { c.Get("/status?code=500") },
		// With a good answer between, or the instance would be ejected.
		"upstream abort": func() { c.Get("/abort"); c.Get("/") },
		"stream":         func() { c.Stream("/sse?n=2&d=1ms").Close() },
		"websocket":      func() { c.WebSocket("/ws", soon).Close() },
		"client abort inside": func() {
			conn := c.Dial()
			before := len(c.Journal().Of("begin"))
			conn.SendHead("GET", hold(c, "never"))
			inside(t, c, before+1)
			conn.Abort()
		},
		"client abort in the middle of its body": func() {
			conn := c.Dial()
			before := len(c.Journal().Of("begin"))
			conn.SendHead("POST", "/echo", "Content-Length: 100")
			conn.Send("half")
			inside(t, c, before+1)
			conn.Abort()
		},
		"client abort in the middle of a stream": func() {
			s := c.Stream("/sse?d=1ms")
			s.Next(t, soon)
			s.Close()
		},
	}
	// Each as often as there are slots, so that one lost each time is noticed.
	for name, end := range ends {
		for range slots {
			end()
		}
		harness.Eventually(t, soon, func() bool { return c.Service("web").Slots.InUse == 0 }, "released after: %s", name)
	}

	// And those that never got a slot.
	var full []*harness.Pending
	before := len(c.Journal().Of("begin"))
	for range slots {
		full = append(full, c.Send(harness.Request{Path: hold(c, "full")}))
	}
	inside(t, c, before+slots)
	wantRefusal(t, c.Get("/"), "wait_timeout")
	gone := c.Dial()
	gone.SendHead("GET", "/")
	c.AwaitWaiting("web", 1)
	gone.Abort()
	c.AwaitWaiting("web", 0)
	large := c.Dial() // its leaving cannot be seen, and must not last for ever
	large.SendHead("POST", "/echo", "Content-Length: 1000000")
	large.Send("the beginning")
	c.AwaitWaiting("web", 1)
	large.Abort()
	c.AwaitWaiting("web", 0)
	c.Open("full")
	for _, p := range full {
		wantOK(t, p.Wait(t, soon))
	}
	released(t, c, slots)
}

// TestG4 covers every kind of client whose leaving can be seen.
func TestG4_ClientThatGoesLeavesTheLineAtOnce(t *testing.T) {
	small, large := strings.Repeat("s", 1000), strings.Repeat("l", 64<<10)
	raw := func(method, body string, fields ...string) func(*harness.Caddy) func() {
		return func(c *harness.Caddy) func() {
			conn := c.Dial()
			conn.SendHead(method, "/echo", fields...)
			conn.Send(body)
			return conn.Abort
		}
	}
	for name, send := range map[string]func(*harness.Caddy) (leave func()){
		"get":                      raw("GET", ""),
		"post with a small body":   raw("POST", small, "Content-Length: 1000"),
		"post with 64 KiB":         raw("POST", large, "Content-Length: 65536"),
		"post with a chunked body": raw("POST", "3e8\r\n"+small+"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
		"upgrade": raw("GET", "", "Connection: Upgrade", "Upgrade: websocket",
			"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
		"http/2 stream": func(c *harness.Caddy) func() {
			return c.Send(harness.Request{Method: "POST", Path: "/echo", Body: strings.NewReader(small), Client: c.H2C()}).Cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			cfg := web(c, args("-gate", c.Path("gate")), "wait_timeout 20s")
			cfg.Global = "servers {\n\tprotocols h1 h2 h2c\n}"
			c.Start(cfg)
			leave := send(c)
			stays := c.Send(harness.Request{Path: "/stays"})
			c.AwaitWaiting("web", 2)
			leave()
			harness.Eventually(t, atOnce, func() bool { return c.Service("web").Waiting == 1 }, "the line is one shorter")
			c.Open("gate")
			wantOK(t, stays.Wait(t, soon))
			if n := len(c.Journal().Of("begin")); n != 1 {
				t.Errorf("%d requests entered; that of the client which had gone is one too many", n)
			}
		})
	}
}

func TestG4_NoFurtherStartIsTriedForClientsThatHaveGone(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-exit-code", "1")))
	conn := c.Dial()
	conn.SendHead("GET", "/")
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("exit")) == 1 }, "the first start has failed")
	conn.Abort()
	c.AwaitWaiting("web", 0)
	harness.Throughout(t, 2500*time.Millisecond, func() bool { return c.Journal().Starts() == 1 },
		"no request waits, so nothing is started after the pause of a second")
}

func TestHeldBodiesReachTheInstanceWhole(t *testing.T) {
	for name, size := range map[string]int{"small": 10, "64 KiB": 64 << 10, "more than 64 KiB": 64<<10 + 1, "1 MiB": 1 << 20} {
		for _, chunked := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " chunked"}[chunked], func(t *testing.T) {
				t.Parallel()
				c := harness.New(t)
				c.Start(web(c, args("-gate", c.Path("gate"))))
				body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
				var reader io.Reader = strings.NewReader(body)
				if chunked {
					reader = io.MultiReader(reader) // hides the length
				}
				p := c.Send(harness.Request{Method: "POST", Path: "/echo", Body: reader})
				c.AwaitWaiting("web", 1)
				c.Open("gate")
				r := p.Wait(t, soon)
				wantOK(t, r)
				if r.Body != body {
					t.Errorf("%d bytes came back of %d", len(r.Body), size)
				}
			})
		}
	}
}

func TestClientThatSendsItsBodySlowlyIsServed(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-gate", c.Path("gate")), "wait_timeout 2s"))
	conn := c.Dial()
	conn.SendHead("POST", "/echo", "Content-Length: 6")
	conn.Send("a")
	c.AwaitWaiting("web", 1)
	conn.Send("b")
	c.Open("gate")
	// A grant does not wait for the body.
	inside(t, c, 1)
	conn.Send("cd")
	conn.Send("ef")
	if r := conn.Receive(soon); r.Status != 200 || r.Body != "abcdef" {
		t.Errorf("status %d, body %q, error %v", r.Status, r.Body, r.Err)
	}
}

func TestExpectContinueThroughAColdStart(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	body := strings.Repeat("x", 200_000)
	r := c.Do(harness.Request{
		Method: "POST", Path: "/echo", Body: strings.NewReader(body),
		Header: http.Header{"Expect": {"100-continue"}},
	})
	wantOK(t, r)
	if r.Body != body {
		t.Errorf("%d bytes came back of %d", len(r.Body), len(body))
	}
}

// A refusal may give up the rest of a body. The next request on the same
// connection must not pay for that, whether the first was held or not.
func TestConnectionServesOnAfterARefusal(t *testing.T) {
	for name, f := range map[string]struct{ code, option string }{
		"held":     {"wait_timeout", "wait_timeout 100ms"},
		"not held": {"asleep", "wake /wake"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(web(c, args("-gate", c.Path("gate")), f.option))
			var conns []*harness.Conn
			for _, body := range []string{"", "body"} {
				conn := c.Dial()
				conn.SendHead("POST", "/", "Content-Length: "+strconv.Itoa(len(body)))
				conn.Send(body)
				r := conn.Receive(soon)
				wantRefusal(t, r, f.code)
				if !r.Close {
					conns = append(conns, conn)
				}
			}
			get := c.Dial()
			get.SendHead("GET", "/")
			wantRefusal(t, get.Receive(soon), f.code)
			c.Open("gate")
			c.Post("web/wake", "")
			c.AwaitState("web", "awake", soon)
			for _, conn := range append(conns, get) {
				for range 2 {
					conn.SendHead("GET", "/")
					wantOK(t, conn.Receive(soon))
				}
			}
		})
	}
}

func TestUnfinishedPostGetsItsRefusalAtOnce(t *testing.T) {
	for name, f := range map[string]struct {
		code, option, path string
	}{
		"asleep":       {"asleep", "wake /wake", "/other"},
		"queue full":   {"queue_full", "max_waiting 0", "/"},
		"wait timeout": {"wait_timeout", "wait_timeout 100ms", "/"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(web(c, args("-never-listen"), f.option))
			for _, fields := range []string{"Content-Length: 1000000", "Content-Length: 1000", "Transfer-Encoding: chunked"} {
				conn := c.Dial()
				conn.SendHead("POST", f.path, fields)
				conn.Send("5\r\nhello\r\n")
				r := conn.Receive(soon)
				wantRefusal(t, r, f.code)
				if r.Took > harness.Slow(time.Second) {
					t.Errorf("%s: the answer came after %s", fields, r.Took)
				}
			}
		})
	}
}
