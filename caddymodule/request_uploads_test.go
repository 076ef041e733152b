package caddymodule

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// h2 serves a configuration by HTTP/2, and returns a client that has one
// connection for everything.
func (c *config) h2() *http.Client {
	c.t.Helper()
	front := httptest.NewUnstartedServer(c.server)
	front.EnableHTTP2 = true
	front.StartTLS()
	old := c.front
	c.front = front
	c.t.Cleanup(old.Close)
	client := front.Client()
	client.Timeout = patience
	return client
}

// post sends an upload, and returns the answer as text.
func post(client *http.Client, url string, body io.Reader) string {
	resp, err := client.Post(url, "", body)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(resp.Proto, " ", resp.StatusCode, " ", resp.Header.Get("Usher-Error"), " ", string(b))
}

// counts is an instance that says how much it got.
func counts(string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, " ", err)
	})
}

// While an upload is held, others of its HTTP/2 connection pass, through
// Usher and through a plain proxy.
func TestUploadsPassOneThatIsHeld(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100_000, 1 << 20, 1<<20 + 1, 3 << 20, aheadMaxStream, aheadMaxStream + windowSpare} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			f, warm := newFleet(t), secondFleet(t)
			f.manual = true
			f.handler, warm.handler = counts, counts
			plain := httptest.NewServer(counts(""))
			t.Cleanup(plain.Close)
			c := start(t, site("handle /plain {\nreverse_proxy "+plain.Listener.Addr().String()+"\n}\nhandle /warm {\n"+warm.usher()+"}\nhandle {\n"+f.usher()+"}\n"))
			client := c.h2()
			if got := post(client, c.front.URL+"/warm", strings.NewReader("x")); got != "HTTP/2.0 200  1 <nil>" {
				t.Fatal(got)
			}
			held := make(chan string, 1)
			go func() { held <- post(client, c.front.URL+"/", bytes.NewReader(make([]byte, size))) }()
			f.waiting(1)
			for range 2 {
				for _, path := range []string{"/warm", "/plain"} {
					if got := post(client, c.front.URL+path, bytes.NewReader(make([]byte, 2<<20))); got != fmt.Sprintf("HTTP/2.0 200  %d <nil>", 2<<20) {
						t.Errorf("%s: %s", path, got)
					}
				}
			}
			f.up()
			if got := <-held; got != fmt.Sprintf("HTTP/2.0 200  %d <nil>", size) {
				t.Errorf("the one that was held: %s", got)
			}
			h := serving(t, f.name).Hub
			eventually(t, "the end of the charge", func() bool { return readAheadOf(h).held.Load() == 0 })
		})
	}
}

// An upload that cannot be read ahead as a whole is held as long as it is
// alone, and is refused if another one needs its connection.
func TestHeldUploadThatIsTooLargeGivesWay(t *testing.T) {
	t.Parallel()
	f, warm := newFleet(t), secondFleet(t)
	f.manual = true
	f.handler, warm.handler = counts, counts
	c := start(t, site("handle /warm {\n"+warm.usher()+"}\nhandle {\n"+f.usher()+"}\n"))
	client := c.h2()
	const size = 20 << 20
	for _, length := range []string{"with", "without"} {
		held := make(chan string, 1)
		go func() {
			var body io.Reader = bytes.NewReader(make([]byte, size))
			if length == "without" {
				body = io.MultiReader(body)
			}
			held <- post(client, c.front.URL+"/", body)
		}()
		f.waiting(1)
		// The window may not be used up yet when the first of the others comes.
		for len(held) == 0 && !t.Failed() {
			if got := post(client, c.front.URL+"/warm", bytes.NewReader(make([]byte, 2<<20))); got != fmt.Sprintf("HTTP/2.0 200  %d <nil>", 2<<20) {
				t.Errorf("%s length: the other: %s", length, got)
			}
		}
		if got := <-held; !strings.HasPrefix(got, "HTTP/2.0 503 queue_full") || !strings.Contains(got, errUploadTooLarge.Error()) {
			t.Errorf("%s length: the one that was held: %s", length, got)
		}
	}
	alone := make(chan string, 1)
	go func() { alone <- post(client, c.front.URL+"/", bytes.NewReader(make([]byte, size))) }()
	f.waiting(1)
	time.Sleep(crowdPatience + 200*time.Millisecond)
	f.up()
	if got := <-alone; got != fmt.Sprintf("HTTP/2.0 200  %d <nil>", size) {
		t.Errorf("alone: %s", got)
	}
	h := serving(t, f.name).Hub
	eventually(t, "the end of the charge", func() bool { return readAheadOf(h).held.Load() == 0 })
}

// streamBody is the body of a request that shares a connection.
func streamBody(all *uploads, held *atomic.Int64, remote string, body io.Reader) *requestBody {
	r := (&http.Request{Body: io.NopCloser(body), ProtoMajor: 2, ContentLength: -1, RemoteAddr: remote}).WithContext(context.Background())
	b := newRequestBody(r, held)
	all.join(b, r)
	return b
}

func TestUploadsOfAConnectionAreBoundedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all uploads
		var held atomic.Int64
		const each = aheadMaxStream - 1000
		var bodies []*requestBody
		for range 5 {
			b := streamBody(&all, &held, "one", bytes.NewReader(make([]byte, each)))
			b.refused()
			b.readAhead()
			bodies = append(bodies, b)
		}
		synctest.Wait()
		if held.Load() > sharedMax {
			t.Errorf("%d bytes are held for one connection", held.Load())
		}
		// Another connection has room of its own.
		other := streamBody(&all, &held, "two", bytes.NewReader(make([]byte, each)))
		other.readAhead()
		synctest.Wait()
		if !other.ended {
			t.Error("the other connection is not read")
		}
		for _, b := range append(bodies, other) {
			b.stopReadingAhead()
			if n, err := io.Copy(io.Discard, b); n != each || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			b.end(httptest.NewRecorder())
		}
		if held.Load() != 0 || len(all.of) != 0 {
			t.Errorf("%d bytes are held, %d connections are known", held.Load(), len(all.of))
		}
	})
}

// All bodies of shared connections together leave room for HTTP/1.1.
func TestUploadsLeaveRoomForTheWatchOnHTTP1Clients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all uploads
		var held atomic.Int64
		held.Store(aheadMaxInAll - aheadKept)
		b := streamBody(&all, &held, "one", strings.NewReader("hello"))
		b.readAhead()
		old := aheadBody(strings.NewReader("hello"), &held)
		old.readAhead()
		synctest.Wait()
		if b.got != 0 || !old.ended {
			t.Errorf("%d bytes of HTTP/2 are read; all of HTTP/1.1: %v", b.got, old.ended)
		}
		for _, b := range []*requestBody{b, old} {
			if got, err := io.ReadAll(b); string(got) != "hello" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			b.end(httptest.NewRecorder())
		}
		if held.Load() != aheadMaxInAll-aheadKept {
			t.Errorf("%d bytes are held", held.Load())
		}
	})
}
