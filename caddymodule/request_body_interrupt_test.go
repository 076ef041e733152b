package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A connection that goes on after a refused upload serves its next request as
// if nothing had happened: a read deadline of the upload must not cancel it.
func TestNextRequestAfterARefusedUploadIsNotCancelled(t *testing.T) {
	t.Parallel()
	f := failing(t)
	addr, _ := serveConns(t, new(hasty).serve)
	c := start(t, site("handle /plain {\nreverse_proxy "+addr+" {\ntransport http {\nkeepalive off\n}\n}\n}\nhandle {\n"+f.usher()+"}\n"))
	for _, chunked := range []bool{false, true} {
		for range 10 {
			conn := c.dial()
			if chunked {
				conn.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
				time.AfterFunc(20*time.Millisecond, func() { _, _ = io.WriteString(conn, "1\r\nb\r\n0\r\n\r\n") })
			} else {
				conn.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
				time.AfterFunc(20*time.Millisecond, func() { _, _ = io.WriteString(conn, "b") })
			}
			r, closes := conn.lastAnswer()
			if r.status != 503 {
				t.Fatalf("the upload: %+v", r)
			}
			if closes {
				continue // a busy machine: the end of the body took longer than drainWait
			}
			if got := conn.next("/plain"); got != "200 served" {
				t.Fatalf("the next request: %s", got)
			}
		}
	}
}

// lateBody is a body whose end arrives at the moment in which its read is
// interrupted.
type lateBody struct {
	inRead chan struct{} // closed at the first read
	ended  chan struct{}
	once   sync.Once
}

func (b *lateBody) Read([]byte) (int, error) {
	close(b.inRead)
	<-b.ended
	return 0, io.EOF
}

func (*lateBody) Close() error { return nil }

type interruptedWriter struct {
	*httptest.ResponseRecorder
	body *lateBody
}

func (w interruptedWriter) SetReadDeadline(time.Time) error {
	w.body.once.Do(func() { close(w.body.ended) })
	return nil
}

// After a read was interrupted the connection is of no further use, even if
// the body came to its end just before.
func TestConnectionEndsAfterAnInterruptedRead(t *testing.T) {
	t.Parallel()
	var held atomic.Int64
	rest := &lateBody{inRead: make(chan struct{}), ended: make(chan struct{})}
	b := aheadBody(rest, &held)
	b.last = true // end does not wait
	b.readAhead()
	<-rest.inRead
	w := interruptedWriter{httptest.NewRecorder(), rest}
	b.end(w)
	if !b.ended || w.Header().Get("Connection") != "close" {
		t.Errorf("ended: %v, header: %v", b.ended, w.Header())
	}
}

// A refused body that has ended leaves the connection without a deadline: one
// in the past would cancel the requests that follow.
func TestNoDeadlineAfterARefusedBodyHasEnded(t *testing.T) {
	t.Parallel()
	var held atomic.Int64
	b := aheadBody(strings.NewReader("the body"), &held)
	interrupted := &lateBody{ended: make(chan struct{})}
	w := interruptedWriter{httptest.NewRecorder(), interrupted}
	b.giveUp(w)
	<-b.leaving.done
	b.linger(w)
	b.end(w)
	select {
	case <-interrupted.ended:
		t.Error("a read deadline was set")
	default:
	}
	if w.Header().Get("Connection") != "" {
		t.Error("the connection is closed")
	}
}

// closedBody records that it was closed.
type closedBody struct {
	io.Reader
	closed bool
}

func (b *closedBody) Close() error {
	b.closed = true
	return nil
}

// After the request is over, net/http reads the rest of the body. A transport
// that closes it only then must not end that: the rest would be taken for the
// next request.
func TestBodyThatIsClosedLateIsLeftToTheServer(t *testing.T) {
	t.Parallel()
	var held atomic.Int64
	rest := &closedBody{Reader: strings.NewReader(strings.Repeat("x", 300_000))}
	b := newRequestBody(&http.Request{Body: rest, ProtoMajor: 1, ContentLength: 300_000}, &held)
	if _, err := io.ReadFull(b, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	b.end(httptest.NewRecorder())
	if err := b.Close(); err != nil || rest.closed {
		t.Errorf("closed: %v, %v", rest.closed, err)
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a read gives %d bytes, %v", n, err)
	}
}

// A transport can still be reading when an answer comes early. net/http does not
// always get rid of such a read, and then a connection that the client wants
// closed stays open.
func TestNoReadOfTheBodyOutlivesARequestWhoseConnectionCloses(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*requestBody){
		"the client wants the close": func(b *requestBody) { b.last = true },
		"full duplex":                func(b *requestBody) { b.duplex = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var held atomic.Int64
			rest := &lateBody{inRead: make(chan struct{}), ended: make(chan struct{})}
			b := newRequestBody(&http.Request{Body: rest, ProtoMajor: 1, ContentLength: -1}, &held)
			set(b)
			read := make(chan error, 1)
			go func() {
				_, err := b.Read(make([]byte, 1))
				read <- err
			}()
			<-rest.inRead
			w := interruptedWriter{httptest.NewRecorder(), rest}
			b.end(w)
			if !b.pulling.TryLock() {
				rest.once.Do(func() { close(rest.ended) })
				t.Fatal("the read goes on")
			}
			b.pulling.Unlock()
			if err := <-read; err != io.EOF {
				t.Errorf("the read ended with %v", err)
			}
			if w.Header().Get("Connection") != "close" {
				t.Error("the connection stays open")
			}
			if n, err := b.pullUnlessOver(make([]byte, 1)); n != 0 || err != http.ErrBodyReadAfterClose {
				t.Errorf("a read that was about to begin gives %d bytes, %v", n, err)
			}
		})
	}
}

// The same over real connections: the body ends about when the answer does.
func TestAConnectionThatTheClientWantsClosedCloses(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	addr, _ := serveConns(t, new(hasty).serve)
	c := start(t, site(f.usher("ready platform", "concurrency unlimited")))
	got := c.begin("GET", "/", "")
	f.ordered(1)
	f.at("tcp", addr, none)
	f.ready(1)
	got()
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 100 {
				conn := c.dial()
				conn.say("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n")
				time.Sleep(time.Duration(worker*100+i) * time.Microsecond)
				_, _ = io.WriteString(conn, "0123456789")
				_ = conn.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.Copy(io.Discard, conn.r); err != nil && conn.end(err) == "hangs" {
					t.Error("the connection stays open")
					return
				}
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

// sparingBody tells of its end only after all of its bytes, as a chunked body
// does whose last chunk comes late.
type sparingBody struct{ left int }

func (b *sparingBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), b.left)
	b.left -= n
	return n, nil
}

func (*sparingBody) Close() error { return nil }

// The limit is the one of net/http: a body of just that length leaves the
// connection open.
func TestAnUnwantedBodyOfJustTheLimitLeavesTheConnectionOpen(t *testing.T) {
	t.Parallel()
	for _, size := range []int{drainMax - 1, drainMax} {
		for name, leave := range map[string]func(*requestBody, http.ResponseWriter){
			"refused": func(b *requestBody, w http.ResponseWriter) {
				b.giveUp(w)
				b.linger(w)
			},
			"closed by a handler": func(b *requestBody, _ http.ResponseWriter) { _ = b.Close() },
		} {
			var held atomic.Int64
			b := newRequestBody(&http.Request{Body: &sparingBody{size}, ProtoMajor: 1, ContentLength: -1}, &held)
			w := httptest.NewRecorder()
			leave(b, w)
			b.end(w)
			if w.Header().Get("Connection") == "close" {
				t.Errorf("%d bytes, %s: the connection closes", size, name)
			}
		}
	}
}
