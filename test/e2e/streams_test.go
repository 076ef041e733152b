package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestG6_OpenStreamsKeepTheirInstanceBeyondIdleTimeout(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *harness.Caddy) (alive func() bool, close func()){
		"websocket": func(t *testing.T, c *harness.Caddy) (func() bool, func()) {
			ws := c.WebSocket("/ws", soon)
			return func() bool { return ws.Echo("ping") == nil }, ws.Close
		},
		"event stream": func(t *testing.T, c *harness.Caddy) (func() bool, func()) {
			s := c.Stream("/sse?d=10ms")
			next := 0
			return func() bool {
				e, ok := s.Next(t, soon)
				next++
				return ok && e.Data == strconv.Itoa(next-1)
			}, func() { s.Close() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCaddy(t)
			c.Start(web(c, nil, "idle_timeout 200ms", "scale queue", "drain_timeout 200ms"))
			alive, end := open(t, c) // through a cold start
			pid := onlyPID(t, c)
			harness.Throughout(t, 800*time.Millisecond, func() bool { return alive() && onlyPID(t, c) == pid },
				"the stream lives, on the same instance")
			if s := c.Service("web"); s.Slots.InUse != 1 || s.State != "awake" {
				t.Errorf("with an open stream: state %s, %d slots in use", s.State, s.Slots.InUse)
			}
			end()
			c.AwaitProcesses(0, soon)
		})
	}
}

func TestEarlyHintsPassThroughAColdStart(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil))
	r := c.Get("/hints")
	wantOK(t, r)
	if len(r.Hints) != 1 || !strings.Contains(r.Hints[0].Get("Link"), "style.css") {
		t.Errorf("informational answers: %v", r.Hints)
	}
}

func TestHTTP2ThroughAColdStart(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(map[bool]string{false: "h2c", true: "h2"}[tls], func(t *testing.T) {
			c := newCaddy(t)
			block := harness.Usher("web", c.Backend(), "concurrency 2", "instances 0 1")
			_, port, _ := strings.Cut(c.TLSAddr, ":")
			c.Start(harness.Config{
				Global: "servers {\n\tprotocols h1 h2 h2c\n}",
				Site:   block,
				Sites:  "https://localhost:" + port + " {\n\ttls internal\n\tusher web\n}\n",
			})
			client := c.H2C()
			if tls {
				client = c.H2()
			}
			var pending []*harness.Pending
			for i := range 10 {
				pending = append(pending, c.Send(harness.Request{
					Method: http.MethodPost, Path: "/echo", Body: strings.NewReader("body " + strconv.Itoa(i)),
					Client: client, TLS: tls,
				}))
			}
			for i, p := range pending {
				r := p.Wait(t, soon)
				if r.Body != "body "+strconv.Itoa(i) || r.Proto != "HTTP/2.0" {
					t.Errorf("request %d: %s, status %d, body %q, error %v", i, r.Proto, r.Status, r.Body, r.Err)
				}
			}
			if most := c.Journal().MaxInside(); most > 2 {
				t.Errorf("%d streams of one connection were inside 2 slots", most)
			}
		})
	}
}

func TestInstanceMaySpeakHTTP2WithoutTLS(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "transport http {\n\tversions h2c 2\n}"))
	r := c.Do(harness.Request{Method: http.MethodPost, Path: "/echo", Body: strings.NewReader("x")})
	wantOK(t, r)
	if got := r.Header.Get("X-Proto"); got != "HTTP/2.0" {
		t.Errorf("the instance was asked over %s", got)
	}
}

func TestUpstreamThatClosesInTheMiddleEndsTheAnswerAndFreesTheSlot(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1"))
	for range 2 { // three failures in a row would eject the instance
		if r := c.Get("/abort"); r.Err == nil || r.Body != "the beginning" || r.UsherError() != "" {
			t.Errorf("a broken answer looks like a whole one: %+v", r)
		}
	}
	wantOK(t, c.Get("/"))
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
}

func TestSlowStreamOfAnAnswerArrivesAsItIsWritten(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "flush_interval -1"))
	r := c.Get("/slow-body?n=20&d=5ms")
	wantOK(t, r)
	if n := strings.Count(r.Body, "line "); n != 20 {
		t.Errorf("%d of 20 lines arrived", n)
	}
}
