package caddymodule

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// fallback is a server that says how much of a body it got.
func fallback(c net.Conn) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	text := fmt.Sprintf("%s %s %d %v", r.Method, r.URL.Path, len(b), strings.Trim(string(b), "x") == "")
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
}

// upload sends a body of n bytes in parts, and says how the answer and the
// connection were: the answer is read while the body is sent.
func (c *rawConn) upload(path string, n, parts int, pause time.Duration, chunked bool) (reply, string) {
	c.t.Helper()
	framing := fmt.Sprintf("Content-Length: %d", n)
	if chunked {
		framing = "Transfer-Encoding: chunked"
	}
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", path, framing)
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := range parts {
			if i > 0 {
				time.Sleep(pause)
			}
			part := strings.Repeat("x", n*(i+1)/parts-n*i/parts)
			if chunked && part != "" {
				part = fmt.Sprintf("%x\r\n%s\r\n", len(part), part)
			}
			if chunked && i == parts-1 {
				part += "0\r\n\r\n"
			}
			if _, err = io.WriteString(c, part); err != nil {
				break
			}
		}
		sent <- err
	}()
	r, closes := c.lastAnswer()
	if r.err != nil {
		return r, c.end(r.err)
	}
	if closes {
		_, err := c.r.ReadByte()
		return r, c.end(err)
	}
	if err := <-sent; err != nil {
		return r, c.end(err)
	}
	return r, c.next("/next")
}

// lastAnswer reads an answer, and says whether it closes the connection.
func (c *rawConn) lastAnswer() (reply, bool) {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return reply{err: err}, true
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return reply{resp.StatusCode, resp.Header, string(b), err}, resp.Close
}

// A request that Usher refuses goes to the error routes with its whole body.
func TestErrorRoutesGetARefusedBody(t *testing.T) {
	t.Parallel()
	addr, _ := serveConns(t, fallback)
	for name, routes := range map[string]func(f *fleet) string{
		"reverse_proxy": func(*fleet) string { return "reverse_proxy " + addr },
		"usher":         func(f *fleet) string { return f.usher("instances 0 1", "ready platform") },
	} {
		for _, chunked := range []bool{false, true} {
			for _, size := range []int{1, 5000, 65536, 65537, 300_000} {
				for _, parts := range []int{1, 3} {
					t.Run(fmt.Sprint(name, " ", size, " in ", parts, " chunked ", chunked), func(t *testing.T) {
						t.Parallel()
						f := failing(t)
						second := secondFleet(t)
						second.manual = true
						c := start(t, site("handle_errors {\n"+routes(second)+"\n}\n"+f.usher()))
						if name == "usher" {
							go func() {
								second.ordered(1)
								second.at("tcp", addr, none)
							}()
						}
						r, next := c.dial().upload("/up", size, parts, 50*time.Millisecond, chunked)
						if want := fmt.Sprintf("POST /up %d true", size); r.status != 200 || r.body != want {
							t.Errorf("%+v, want %q", r, want)
						}
						if next != "200 GET /next 0 true" {
							t.Errorf("the next request: %s", next)
						}
					})
				}
			}
		}
	}
}

// What was read of a body while the request waited is not lost for the error
// routes, if what follows fails without it.
func TestErrorRoutesGetTheBodyThatWasReadAhead(t *testing.T) {
	t.Parallel()
	addr, _ := serveConns(t, fallback)
	for _, chunked := range []bool{false, true} {
		for _, size := range []int{1, 5000, 65536, 65537, 300_000} {
			for _, parts := range []int{1, 3} {
				t.Run(fmt.Sprint(size, " in ", parts, " chunked ", chunked), func(t *testing.T) {
					t.Parallel()
					f := newFleet(t)
					f.manual = true
					// Instead of the proxy a handler follows that fails.
					adapted, err := adapt(site("handle_errors {\nreverse_proxy " + addr + "\n}\n" + f.usher("ready platform")))
					if err != nil {
						t.Fatal(err)
					}
					var doc any
					if err := json.Unmarshal(adapted, &doc); err != nil {
						t.Fatal(err)
					}
					breakProxies(doc)
					text, _ := json.Marshal(doc)
					c := start(t, string(text))
					go func() {
						f.waiting(1)
						f.ordered(1)
						time.Sleep(20 * time.Millisecond)
						f.at("tcp", addr, none)
					}()
					r, next := c.dial().upload("/up", size, parts, 50*time.Millisecond, chunked)
					if want := fmt.Sprintf("POST /up %d true", size); r.status != 200 || r.body != want {
						t.Errorf("%+v, want %q", r, want)
					}
					if next != "200 GET /next 0 true" {
						t.Errorf("the next request: %s", next)
					}
				})
			}
		}
	}
}

// breakProxies puts a handler that fails in the place of every proxy of Usher.
func breakProxies(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			breakProxies(e)
		}
	case map[string]any:
		handlers, _ := v["handle"].([]any)
		for _, h := range handlers {
			if h := h.(map[string]any); h["proxy"] != nil {
				delete(h, "proxy")
				v["handle"] = append(handlers, map[string]any{"handler": "error", "status_code": 502})
			}
		}
		for _, e := range v {
			breakProxies(e)
		}
	}
}

// A refused upload gets its answer, however much of it is still to come, and
// is not reset.
func TestRefusedUploadGetsItsAnswer(t *testing.T) {
	t.Parallel()
	f := failing(t)
	dead := deaf(t)
	c := start(t, site("handle /plain {\nreverse_proxy "+dead+"\n}\nhandle {\n"+f.usher()+"}\n"))
	for _, chunked := range []bool{false, true} {
		for _, size := range []int{0, 1, 1000, 60_000, 65536, 65537, 262_144, 262_145, 4_000_000} {
			for _, parts := range []int{1, 3} {
				t.Run(fmt.Sprint(size, " in ", parts, " chunked ", chunked), func(t *testing.T) {
					t.Parallel()
					begun := time.Now()
					r, after := c.dial().upload("/", size, parts, 20*time.Millisecond, chunked)
					took := time.Since(begun)
					if r.status != 503 || r.header.Get("Usher-Error") != "start_failed" {
						t.Errorf("%+v", r)
					}
					plain, plainAfter := c.dial().upload("/plain", size, parts, 20*time.Millisecond, chunked)
					if plain.status != 502 {
						t.Errorf("plain: %+v", plain)
					}
					if strings.HasPrefix(after, "503") {
						after = "goes on"
					}
					if strings.HasPrefix(plainAfter, "503") {
						plainAfter = "goes on"
					}
					if after == "closed" && took > drainWait {
						return // a busy machine: the parts took longer than Usher waits
					}
					// All of it was read: that is no worse.
					if after != plainAfter && after != "goes on" {
						t.Errorf("the connection then %s, that of a plain proxy %s", after, plainAfter)
					}
				})
			}
		}
	}
}

// A client that sends everything before it reads the answer gets it, too.
func TestRefusedUploadIsReadToItsEndForAClientThatDoesNotListen(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site(f.usher()))
	for _, chunked := range []bool{false, true} {
		conn := c.dial()
		body := strings.Repeat("x", 12_000_000)
		if chunked {
			conn.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
		} else {
			conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
		r, closes := conn.lastAnswer()
		if r.status != 503 {
			t.Errorf("chunked %v: %+v", chunked, r)
		}
		if !closes {
			// All of it came before the answer was written: the connection goes on.
			conn.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			if r, closes := conn.lastAnswer(); r.status != 503 || !closes {
				t.Errorf("chunked %v, the next request: %+v", chunked, r)
			}
		}
		if _, err := conn.r.ReadByte(); err != io.EOF {
			t.Errorf("chunked %v: the connection ends with %v", chunked, err)
		}
	}
}

// A client that stops in the middle of its body gets the refusal in a moment,
// and holds nothing for long.
func TestRefusedUploadThatStallsHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"length":          "Content-Length: 100\r\n\r\nsome",
		"long":            "Content-Length: 10000000\r\n\r\nsome",
		"chunked":         "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
		"100-continue":    "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
		"HTTP/1.0":        "Content-Length: 100\r\n\r\nsome",
		"close":           "Connection: close\r\nContent-Length: 100\r\n\r\nsome",
		"length, error":   "Content-Length: 100\r\n\r\nsome",
		"chunked, static": "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := failing(t)
			routes := ""
			if strings.Contains(name, ",") {
				routes = "handle_errors {\nrespond sorry 500\n}\n"
			}
			c := start(t, site(routes+f.usher()))
			conn := c.dial()
			version := "1.1"
			if name == "HTTP/1.0" {
				version = "1.0"
			}
			begun := time.Now()
			conn.say("POST / HTTP/%s\r\nHost: a\r\n%s", version, head)
			r := conn.answer()
			if r.err != nil || r.status < 500 {
				t.Errorf("%+v", r)
			}
			if took := time.Since(begun); took > lingerStall {
				t.Errorf("the answer came after %v", took)
			}
			if _, err := conn.r.ReadByte(); conn.end(err) != "closed" {
				t.Errorf("the connection ends with %v", err)
			}
			if took := time.Since(begun); took > lingerTotal {
				t.Errorf("the connection was held for %v", took)
			}
		})
	}
}
