package caddymodule

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A server that forks its workers listens before they can serve. If it ends
// with requests inside, these are told why, and not just 502.
func TestRequestInsideAnInstanceThatEndsAtOnceIsToldTheReason(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		options, accept string
		delay           time.Duration // from the end of the connection to that of the instance
		hangs           bool          // the connection does not end
		want, never     string
	}{
		"the end is known at once":  {"", "", 0, false, `"detail":"exit status 1","code":"instance_ended"`, "secret"},
		"the end is known later":    {"", "", 100 * time.Millisecond, false, `"detail":"exit status 1","code":"instance_ended"`, "secret"},
		"the connection stays open": {"", "", 0, true, `"detail":"exit status 1","code":"instance_ended"`, "secret"},
		"with all details":          {"error_detail full", "", 0, false, "secret output line", "try again"},
		"for people":                {"", "text/html", 0, false, "<p>exit status 1</p>", "secret"},
		"as text":                   {"", "text/plain", 0, false, "The service ended before it answered: exit status 1 (instance_ended)", "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "1 1", x.options)
			c := up()
			f.ordered(1)
			inside, ended := make(chan struct{}), make(chan struct{})
			addr, _ := serveConns(t, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 4096))
				close(inside)
				if x.hangs {
					_, _ = io.Copy(io.Discard, c)
				}
				_ = c.Close()
				close(ended)
			})
			id := f.at("tcp", addr, none)
			f.ready(1)
			wait := c.begin("POST", "/", "", "Accept", x.accept)
			<-inside
			if !x.hangs {
				<-ended
				time.Sleep(x.delay)
			}
			f.die(id)
			r := wait()
			if r.status != 502 || !strings.Contains(r.body, x.want) || strings.Contains(r.body, x.never) {
				t.Errorf("%+v", r)
			}
			// It may have seen the request: nothing says that it can be sent again.
			if r.header.Get("Usher-Error") != "" || r.header.Get("Retry-After") != "" || r.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%v", r.header)
			}
			if st := serving(t, f.name).Reserver.Stats(); st.InUse != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestReasonOfAnEndReachesTheErrorRoutes(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site("handle_errors {\nrespond `{err.status_code} {err.message} {http.usher.error}`\n}\n"+f.usher("instances 1 1", "ready platform")))
	f.ordered(1)
	inside := make(chan struct{})
	addr, _ := serveConns(t, func(c net.Conn) {
		resets(c)
		close(inside)
	})
	id := f.at("tcp", addr, none)
	f.ready(1)
	wait := c.begin("POST", "/", "a body")
	<-inside
	f.die(id)
	if r := wait(); r.status != 502 || !strings.Contains(r.body, "exit status 1 instance_ended") || r.header.Get("Usher-Error") != "" {
		t.Errorf("%+v", r)
	}
}

// Without the end of the instance there is no reason to tell.
func TestBrokenConnectionOfAnInstanceThatRunsOnIsAnEmpty502(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1")
	c := up()
	f.ordered(1)
	addr, _ := serveConns(t, resets)
	f.at("tcp", addr, none)
	f.ready(1)
	if r := c.do("POST", "/", "a body"); r.status != 502 || r.body != "" {
		t.Errorf("%+v", r)
	}
}
