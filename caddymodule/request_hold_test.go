package caddymodule

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

func TestG13RequestForAColdServiceIsHeldAndServed(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("server_timing")+"\n"))
	wait := c.begin("POST", "/x", "hello")
	f.ordered(1)
	f.up()
	r := wait()
	if r.status != 200 || r.body != "POST /x hello" {
		t.Fatalf("%+v", r)
	}
	if st := r.header.Values("Server-Timing"); len(st) != 1 || !strings.HasPrefix(st[0], "usher-wait;dur=") || !strings.HasSuffix(st[0], ", usher-cold") {
		t.Errorf("Server-Timing %q", st)
	}
}

func TestOwnAnswersSayWhatTheContractNames(t *testing.T) {
	t.Parallel()
	for code, x := range map[string]struct {
		options []string
		before  func(*fleet, *config)
	}{
		"queue_full":   {[]string{"max_waiting 0"}, nil},
		"wait_timeout": {[]string{"wait_timeout 20ms"}, nil},
		"asleep":       {[]string{"wake /elsewhere"}, nil},
		"suspended":    {nil, func(f *fleet, _ *config) { serving(f.t, f.name).Loop.Suspend("by the operator") }},
		"shutting_down": {nil, func(f *fleet, _ *config) {
			serving(f.t, f.name).Loop.Exit()
		}},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.manual = true
			c := start(t, site(f.usher(append(x.options, "server_timing")...)))
			if x.before != nil {
				x.before(f, c)
			}
			r := c.get("/", "Accept", "text/plain")
			if r.status != 503 || r.header.Get("Usher-Error") != code || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "("+code+";") {
				t.Errorf("%+v", r)
			}
			if code == "suspended" && !strings.Contains(r.body, "by the operator") {
				t.Errorf("the operator's words are missing: %s", r.body)
			}
			if n := len(r.header.Values("Server-Timing")); n != 1 {
				t.Errorf("%d times Server-Timing", n)
			}
			if n := counted(t, f.name, code); n != "1" {
				t.Errorf("counted: %q", n)
			}
		})
	}
}

func TestG8VerdictReachesWhoWaits(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("wait_timeout 1m")))
	wait := c.begin("GET", "/", "")
	f.ordered(1)
	f.waiting(1)
	serving(t, f.name).Loop.Suspend("not today")
	if r := wait(); r.status != 503 || r.header.Get("Usher-Error") != "suspended" {
		t.Errorf("%+v", r)
	}
}

func TestRequestsThatDoNotMatchWakeAreServedWhileAnInstanceIsReady(t *testing.T) {
	t.Parallel()
	for name, matcher := range map[string]string{"a path": "wake /wake", "a named one": "wake @wake"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			c := start(t, site("@wake path /wake\n"+f.usher(matcher)))
			if r := c.get("/quiet"); r.header.Get("Usher-Error") != "asleep" {
				t.Errorf("%+v", r)
			}
			if f.fake.Started() != 0 {
				t.Error("it woke the service")
			}
			for _, path := range []string{"/wake", "/quiet"} {
				if r := c.get(path); r.status != 200 {
					t.Errorf("%s: %+v", path, r)
				}
			}
		})
	}
}

func TestG4ClientThatLeavesLeavesTheLine(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"GET":                    "",
		"POST":                   "hello",
		"POST of 64 KiB":         strings.Repeat("x", aheadMax),
		"chunked POST of 64 KiB": strings.Repeat("x", aheadMax),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.manual = true
			c := start(t, site(f.usher()))
			conn := c.dial()
			switch {
			case body == "":
				conn.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			case strings.HasPrefix(name, "chunked"):
				conn.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
			default:
				conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
			f.waiting(1)
			_ = conn.Close()
			f.waiting(0)
			eventually(t, "the count", func() bool { return counted(t, f.name, outcomeClientGone) == "1" })
		})
	}
}

// rawConn is a client that speaks HTTP/1.1 word by word.
type rawConn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (c *config) dial() *rawConn {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.front.Listener.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &rawConn{Conn: conn, t: c.t, r: bufio.NewReader(conn)}
}

func (c *rawConn) say(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawConn) answer() reply {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	for err == nil && resp.StatusCode < 200 {
		resp, err = http.ReadResponse(c.r, nil)
	}
	if err != nil {
		return reply{err: err}
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return reply{resp.StatusCode, resp.Header, string(b), err}
}

func TestUnfinishedBodyDoesNotDelayTheRefusal(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site(f.usher()))
	conn := c.dial()
	conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nsome")
	if r := conn.answer(); r.status != 503 {
		t.Errorf("%+v", r)
	}
	if _, err := conn.r.ReadByte(); err == nil {
		t.Error("the connection stays, with the rest of a body to come")
	}
}

func TestGrantDoesNotWaitForATricklingBody(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	first := make(chan string, 1)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b := make([]byte, 4)
			_, _ = io.ReadFull(r.Body, b)
			first <- string(b)
			rest, _ := io.ReadAll(r.Body)
			_, _ = w.Write(rest)
		})
	}
	c := start(t, site(f.usher()))
	conn := c.dial()
	conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nsome")
	f.waiting(1)
	f.ordered(1)
	f.up()
	f.ready(1)
	// The read-ahead hangs in a read now; what it gets comes in its place.
	conn.say("th")
	if got := <-first; got != "some" {
		t.Errorf("the instance got %q", got)
	}
	conn.say("ng")
	if r := conn.answer(); r.body != "thng" {
		t.Errorf("%+v", r)
	}
}

func TestBodiesArriveWholeAfterAHold(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, aheadFirst, aheadFirst + 1, aheadMax - 1, aheadMax, aheadMax + 1, 300_000} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d chunked %v", size, chunked), func(t *testing.T) {
				t.Parallel()
				f := newFleet(t)
				f.manual = true
				f.handler = func(string) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						b, err := io.ReadAll(r.Body)
						_, _ = fmt.Fprintf(w, "%d %v %v", len(b), err, strings.Trim(string(b), "x") == "")
					})
				}
				c := start(t, site(f.usher()))
				conn := c.dial()
				body := strings.Repeat("x", size)
				go func() {
					if chunked {
						_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, body)
					} else {
						_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, body)
					}
				}()
				f.ordered(1)
				f.up()
				if r := conn.answer(); r.body != fmt.Sprintf("%d <nil> true", size) {
					t.Errorf("%+v", r)
				}
				eventually(t, "the end of the charge", func() bool { return readAheadOf(serving(t, f.name).Hub).held.Load() == 0 })
			})
		}
	}
}

func TestExpectContinueIsAnsweredWhereTheBodyIsRead(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher()))
	conn := c.dial()
	conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if line, err := conn.r.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	_, _ = conn.r.ReadString('\n')
	conn.say("hello")
	f.ordered(1)
	f.up()
	if r := conn.answer(); r.body != "POST / hello" {
		t.Errorf("%+v", r)
	}
}

func TestPlaceholdersTellWhatUsherDid(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site("log\nheader >X-Usher \"{http.usher.service} {http.usher.instance} {http.usher.address} {http.usher.revision} {http.usher.cold} {http.usher.error}\"\n"+f.usher()))
	cold, warm := c.get("/"), c.get("/")
	i := serving(t, f.name).Loop.Instances()[0]
	for k, r := range []reply{cold, warm} {
		want := fmt.Sprintf("%s %s %s %s %v ", f.name, i.ID, i.Address, i.Revision, k == 0)
		if got := r.header.Get("X-Usher"); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var entry map[string]any
	eventually(t, "the access log", func() bool {
		all := logsOf(logName(t)).entries("handled request")
		if len(all) == 2 {
			entry = all[0]["usher"].(map[string]any)
		}
		return len(all) == 2
	})
	if entry["service"] != f.name || entry["instance"] != i.ID || entry["address"] != i.Address || entry["cold"] != true || entry["wait_ms"] == nil {
		t.Errorf("%v", entry)
	}
}

func TestWaitTimeoutBeyondWriteTimeoutIsWarnedAbout(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	provision(t, "{\nauto_https off\nservers {\ntimeouts {\nwrite 5s\n}\n}\n}\n:80 {\n"+f.usher()+"}\n")
	if n := len(logsOf(logName(t)).entries("requests may wait longer than the server's write_timeout allows: they would be cut off without an answer")); n != 1 {
		t.Errorf("%d warnings", n)
	}
}

// A handler that follows may panic, or answer by any means: the slot comes
// back, and an instance does not speak for Usher.
func TestG3SlotComesBackWhateverFollows(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher()))
	if r := c.get("/"); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	h := &Handler{Service: f.name, service: serving(t, f.name), shared: &serverShared{generation: new(hub.Generation)}}
	for name, next := range map[string]caddyhttp.HandlerFunc{
		"a panic":  func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) },
		"an error": func(http.ResponseWriter, *http.Request) error { return caddyhttp.Error(418, nil) },
		"nothing":  func(http.ResponseWriter, *http.Request) error { return nil },
		"a write": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Usher-Error", "x")
			_, err := io.WriteString(w, "x")
			return err
		},
		"a copy": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Usher-Error", "x")
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("x"))
			return err
		},
		"a flush": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Usher-Error", "x")
			return http.NewResponseController(w).Flush()
		},
	} {
		func() {
			defer func() { _ = recover() }()
			rec := httptest.NewRecorder()
			err := h.ServeHTTP(rec, httptest.NewRequest("POST", "/", strings.NewReader("body")), next)
			if name == "an error" && err == nil {
				t.Error("the error is lost")
			}
			if rec.Result().Header.Get("Usher-Error") != "" {
				t.Errorf("%s: the header passes", name)
			}
		}()
		if st := h.service.Reserver.Stats(); st.InUse != 0 || st.Demand != 0 {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// aheadBody is a request body as a handler sees it, over what a client sends.
func aheadBody(rest io.Reader, held *atomic.Int64) *requestBody {
	return newRequestBody(&http.Request{Body: io.NopCloser(rest), ProtoMajor: 1, ContentLength: -1}, held)
}

func TestReadAheadIsBoundedOverAllServices(t *testing.T) {
	t.Parallel()
	var held atomic.Int64
	held.Store(aheadMaxInAll)
	b := aheadBody(strings.NewReader("hello"), &held)
	if b.readAhead() != nil {
		t.Error("it reads")
	}
	held.Store(aheadMaxInAll - 1)
	b.readAhead()
	got, err := io.ReadAll(b)
	if string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	b.end(httptest.NewRecorder())
	if held.Load() != aheadMaxInAll-1 {
		t.Errorf("%d are held", held.Load())
	}
}

// What a client announces and does not send takes no more memory than is
// accounted for.
func TestTricklingBodiesAreChargedForTheRoomThatTheyTake(t *testing.T) {
	t.Parallel()
	for _, length := range []int64{-1, aheadMax} {
		var held atomic.Int64
		pr, pw := io.Pipe()
		b := aheadBody(pr, &held)
		b.length = length
		b.readAhead()
		for range 3 {
			_, _ = pw.Write([]byte("x"))
		}
		b.mu.Lock()
		room, charged := cap(b.ahead), b.charged
		b.mu.Unlock()
		if int64(room) != charged || held.Load() != charged || room > aheadFirst {
			t.Errorf("%d bytes are kept for 3 that came, %d are charged", room, charged)
		}
		_ = pw.Close()
		if got, err := io.ReadAll(b); string(got) != "xxx" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		b.end(httptest.NewRecorder())
		if held.Load() != 0 {
			t.Errorf("%d are held", held.Load())
		}
	}
}

func TestReadErrorIsPassedOnWhereItOccurred(t *testing.T) {
	t.Parallel()
	pr, pw := io.Pipe()
	var held atomic.Int64
	b := aheadBody(pr, &held)
	gone := b.readAhead()
	_, _ = pw.Write([]byte("hello"))
	_ = pw.CloseWithError(io.ErrUnexpectedEOF)
	<-gone
	got, err := io.ReadAll(b)
	if string(got) != "hello" || err != io.ErrUnexpectedEOF || !b.failed() {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWaitForARetryLearnsOfTheClientThroughTheReadOfTheFirst(t *testing.T) {
	t.Parallel()
	pr, pw := io.Pipe()
	var held atomic.Int64
	b := aheadBody(pr, &held)
	first := b.readAhead()
	b.stopReadingAhead()
	second := b.readAhead()
	if first == nil || second == nil {
		t.Fatal("there is no notice of a gone client")
	}
	// That read was told to go on.
	_, _ = pw.Write([]byte("a"))
	_, _ = pw.Write([]byte("b"))
	_ = pw.CloseWithError(io.ErrUnexpectedEOF)
	select {
	case <-second:
	case <-time.After(patience):
		t.Error("the client is gone without a notice")
	}
}

func TestClientThatLeavesAnInstanceIsNoStrike(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1")
	c := up()
	f.ordered(1)
	inside := make(chan bool, 1)
	addr, _ := serveConns(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 64))
		inside <- true
		_, _ = io.Copy(io.Discard, c)
	})
	f.at("tcp", addr, none)
	f.ready(1)
	activity := &serving(t, f.name).Hub.Activity
	before := activity.Last()
	for range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		wait := c.beginWith(ctx, "GET", "/", "")
		<-inside
		cancel()
		wait()
		eventually(t, "the release", func() bool { return serving(t, f.name).Reserver.Stats().InUse == 0 })
	}
	// An ejected one would be back by now, by the platform's word.
	entries, _ := activity.After(before)
	for _, e := range entries {
		if _, ok := e.Event.(control.InstanceStatus); ok && e.Service == f.name {
			t.Errorf("%+v", e)
		}
	}
}
