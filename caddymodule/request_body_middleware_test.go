package caddymodule

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// The unread rest of a body is never executed as a request, whatever handler
// between the server and `usher` replaces the request, its body or the writer.
func TestUnreadBodyIsNotTheNextRequestBehindMiddleware(t *testing.T) {
	t.Parallel()
	addr, _ := serveConns(t, new(hasty).serve)
	for name, x := range map[string]struct {
		before string // handlers in front of usher
		around string // a block around it
		path   string
		status int
		late   bool // the request may reach usher after its whole body, or never
	}{
		"tracing":                   {before: "tracing {\nspan upload\n}"},
		"request_body":              {before: "request_body {\nmax_size 1MB\n}"},
		"request_body, too small":   {before: "request_body {\nmax_size 110\n}", status: anyStatus, late: true},
		"encode":                    {before: "encode gzip zstd"},
		"intercept":                 {before: "intercept {\n@denied status 401\nhandle_response @denied {\nrespond 403\n}\n}", status: 403},
		"intercept, another status": {before: "intercept {\n@denied status 401\nreplace_status @denied 403\n}", status: 403},
		"rewrite":                   {before: "rewrite * /login"},
		"handle_path":               {around: "handle_path /p/*", path: "/p"},
		"log_append":                {before: "log_append key {http.usher.service}\nlog_append <early {http.request.uuid}"},
		"a late header":             {before: "header >Server changed"},
		"templates":                 {before: "templates"},
		"forward_auth":              {before: "forward_auth " + addr + " {\nuri /auth\ntransport http {\nkeepalive off\n}\n}"},
		"all of them": {before: "tracing {\nspan upload\n}\nrequest_body {\nmax_size 1MB\n}\nencode gzip\nlog_append key value\n" +
			"header >Server changed\nrewrite * /login\ntemplates"},
	} {
		for _, temperature := range []string{"cold", "warm"} {
			for _, chunked := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " ", temperature, " chunked ", chunked), func(t *testing.T) {
					t.Parallel()
					f := newFleet(t)
					f.manual = true
					h := new(hasty)
					instance, _ := serveConns(t, h.serve)
					around := x.around
					if around == "" {
						around = "route"
					}
					c := start(t, site("log\n"+around+" {\n"+x.before+"\n"+f.usher("instances 0 1", "ready platform")+"\n}"))
					up := func() {
						f.ordered(1)
						f.at("tcp", instance, none)
						f.ready(1)
					}
					if temperature == "warm" {
						got := c.begin("GET", x.path+"/", "")
						up()
						got()
					}
					conn := c.dial()
					inner := "GET " + x.path + "/x HTTP/1.1\r\nHost: a\r\n\r\n"
					sayInParts(conn, x.path+"/login", chunked, []string{strings.Repeat("a", 100), inner, inner}, func() {
						switch {
						case temperature == "warm":
						case x.late:
							go f.upOnDemand(instance)
						default:
							f.waiting(1)
							up()
						}
					})
					status := 401
					if x.status != 0 {
						status = x.status
					}
					r, closes := conn.lastAnswer()
					if r.err != nil || status != anyStatus && r.status != status {
						t.Errorf("the answer is %+v", r)
					}
					if closes {
						_, err := conn.r.ReadByte()
						if got := conn.end(err); got != "closed" {
							t.Errorf("the connection: %s", got)
						}
					} else if got := conn.next(x.path + "/ok/1"); got != "200 served" {
						t.Errorf("the next request: %s", got)
					}
					if h.saw("GET "+x.path+"/x") || h.saw("GET /x") {
						t.Error("a part of the body was executed")
					}
				})
			}
		}
	}
}

// anyStatus stands for a test in which the status does not matter.
const anyStatus = -1

// sayInParts sends a POST in parts with pauses, and calls begun after the
// first.
func sayInParts(conn net.Conn, path string, chunked bool, parts []string, begun func()) {
	framing := fmt.Sprintf("Content-Length: %d", len(strings.Join(parts, "")))
	if chunked {
		framing = "Transfer-Encoding: chunked"
		for i, p := range parts {
			parts[i] = fmt.Sprintf("%x\r\n%s\r\n", len(p), p)
		}
		parts[len(parts)-1] += "0\r\n\r\n"
	}
	_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n%s", path, framing, parts[0])
	begun()
	for _, p := range parts[1:] {
		time.Sleep(100 * time.Millisecond)
		if _, err := fmt.Fprint(conn, p); err != nil {
			return // the connection is closed already
		}
	}
}

// upOnDemand brings up an instance as soon as one is ordered. It gives up with
// the test.
func (f *fleet) upOnDemand(address string) {
	for {
		var ordered bool
		var changed chan struct{}
		f.set(func() { ordered, changed = len(f.revs) > 0 && f.newest().Want > 0, f.changed })
		if ordered {
			f.at("tcp", address, none)
			return
		}
		select {
		case <-changed:
		case <-f.t.Context().Done():
			return
		}
	}
}
