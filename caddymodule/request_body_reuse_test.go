package caddymodule

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hasty is an instance that answers a POST before it has read its body, as
// one does that refuses it by its header alone. It keeps a list of the
// requests that it saw.
type hasty struct {
	mu   sync.Mutex
	seen []string
}

func (h *hasty) serve(c net.Conn) {
	from := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(from)
		if err != nil {
			return
		}
		h.mu.Lock()
		h.seen = append(h.seen, r.Method+" "+r.URL.Path)
		h.mu.Unlock()
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			continue // the whole body came, so the proxy may reuse the connection
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nserved")
	}
}

func (h *hasty) saw(what string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.seen, what)
}

// next says what becomes of the connection: it serves a further request, or
// was closed, or reset.
func (c *rawConn) next(path string) string {
	c.t.Helper()
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
	if err != nil {
		return c.end(err)
	}
	r := c.answer()
	if r.err != nil {
		return c.end(r.err)
	}
	return fmt.Sprint(r.status, " ", r.body)
}

func (c *rawConn) end(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case err == nil:
		return "goes on"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "hangs"
	}
	return err.Error()
}

// The rest of a body that an instance did not want is never executed as a
// request, however the service was found.
func TestUnreadBodyOfAHeldRequestIsNotTheNextRequest(t *testing.T) {
	t.Parallel()
	for _, framing := range []string{"Content-Length", "chunked"} {
		for _, temperature := range []string{"cold", "warm"} {
			for _, parts := range []int{2, 3} {
				t.Run(fmt.Sprint(framing, " ", temperature, " ", parts), func(t *testing.T) {
					t.Parallel()
					f := newFleet(t)
					f.manual = true
					h := new(hasty)
					addr, _ := serveConns(t, h.serve)
					c := start(t, site(f.usher("instances 0 1", "ready platform")))
					up := func() {
						f.ordered(1)
						f.at("tcp", addr, none)
						f.ready(1)
					}
					if temperature == "warm" {
						got := c.begin("GET", "/", "")
						up()
						got()
					}
					inner := "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
					pieces := []string{strings.Repeat("a", 100), inner, inner}[:parts]
					conn := c.dial()
					if framing == "chunked" {
						conn.say("POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
						for i, p := range pieces {
							pieces[i] = fmt.Sprintf("%x\r\n%s\r\n", len(p), p)
						}
						pieces[parts-1] += "0\r\n\r\n"
					} else {
						conn.say("POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", len(strings.Join(pieces, "")))
					}
					conn.say("%s", pieces[0])
					if temperature == "cold" {
						f.waiting(1)
						up()
					}
					for _, p := range pieces[1:] {
						time.Sleep(100 * time.Millisecond)
						conn.say("%s", p)
					}
					if r := conn.answer(); r.status != 401 {
						t.Errorf("the answer is %+v", r)
					}
					if got := conn.next("/ok/1"); got != "200 served" {
						t.Errorf("the next request: %s", got)
					}
					if h.saw("GET /x") {
						t.Error("a part of the body was executed")
					}
				})
			}
		}
	}
}
