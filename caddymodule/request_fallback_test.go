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
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// behindErrorRoute is a site whose service cannot be started, and whose error routes
// pass all requests on to another server.
func behindErrorRoute(t *testing.T, handler http.HandlerFunc) *config {
	t.Helper()
	other := httptest.NewServer(handler)
	t.Cleanup(other.Close)
	f := failing(t)
	return start(t, site("handle_errors {\nreverse_proxy "+strings.TrimPrefix(other.URL, "http://")+"\n}\n"+f.usher()))
}

func TestAnAnswerOfAFallbackIsNoErrorOfUshers(t *testing.T) {
	t.Parallel()
	c := behindErrorRoute(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Path {
		case "/cached":
			h.Set("Cache-Control", "public, max-age=60")
		case "/unavailable":
			h.Set("Retry-After", "77")
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/empty":
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case "/moved":
			w.Header().Set("Location", "/x")
			w.WriteHeader(http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "of the fallback")
	})
	for path, want := range map[string]struct {
		status       int
		cache, retry string
		body         string
	}{
		"/":       {200, "no-store", "", "of the fallback"},
		"/cached": {200, "public, max-age=60", "", "of the fallback"},
		// The fallback has executed the request: this is no word of Usher's
		// that it may come again.
		"/unavailable": {503, "no-store", "77", "of the fallback"},
		"/empty":       {503, "no-store", "", ""},
		"/moved":       {302, "no-store", "", ""},
	} {
		for _, method := range []string{"GET", "POST", "HEAD"} {
			r := c.do(method, path, "")
			if r.status != want.status || strings.Join(r.header.Values("Cache-Control"), "|") != want.cache ||
				strings.Join(r.header.Values("Retry-After"), "|") != want.retry || r.header.Get("Usher-Error") != "" ||
				method != "HEAD" && r.body != want.body {
				t.Errorf("%s %s: %+v", method, path, r)
			}
		}
	}
}

func TestAFallbackThatCannotBeReachedLeavesTheAnswerToUsher(t *testing.T) {
	t.Parallel()
	f := failing(t)
	c := start(t, site("handle_errors {\nreverse_proxy "+deaf(t)+"\n}\n"+f.usher()))
	if r := c.get("/"); r.status != 503 || r.header.Get("Usher-Error") != "start_failed" || !strings.Contains(r.body, "start_failed") {
		t.Errorf("%+v", r)
	}
}

func TestHeadersOfAStreamOfAFallbackComeAtOnce(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	c := behindErrorRoute(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-over
		_, _ = io.WriteString(w, "data: x\n\n")
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", c.front.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r) // returns with the headers
	close(over)
	if err != nil {
		t.Fatal("no headers before the first event: ", err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || string(b) != "data: x\n\n" || err != nil {
		t.Errorf("%v %q %v", resp, b, err)
	}
}

// upgradeEchoes takes the connection over and sends all back until it hears
// "end".
func upgradeEchoes(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	for {
		line, err := rw.ReadString('\n')
		if err != nil || line == "end\n" {
			return
		}
		_, _ = io.WriteString(conn, line)
	}
}

func TestNothingIsWrittenAfterTheWebsocketOfAFallback(t *testing.T) {
	t.Parallel()
	c := behindErrorRoute(t, upgradeEchoes)
	conn, err := new(net.Dialer).DialContext(context.Background(), "tcp", strings.TrimPrefix(c.front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	rd := bufio.NewReader(conn)
	resp, err := http.ReadResponse(rd, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Usher-Error") != "" {
		t.Fatal(resp, err)
	}
	_, _ = io.WriteString(conn, "hello\nend\n")
	if rest, err := io.ReadAll(rd); err != nil || string(rest) != "hello\n" {
		t.Errorf("after the handshake came %q, %v", rest, err)
	}
}

// A websocket over HTTP/2 answers its handshake with a 200 that has no body
// yet, and so does any other stream in both directions.
func TestTheHandshakeOfAFallbackOverHTTP2ComesAtOnce(t *testing.T) {
	t.Parallel()
	c := behindErrorRoute(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		_ = rc.Flush()
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "got %s", b)
	})
	h2 := c.dialH2()
	h2.send(1, false, ":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/")
	first := h2.frames(1, func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
	if f := first[len(first)-1].(*http2.MetaHeadersFrame); fieldsOf(f)[":status"][0] != "200" || f.StreamEnded() {
		t.Fatal(f)
	}
	if err := h2.framer.WriteData(1, true, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	var body strings.Builder
	h2.frames(1, func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok {
			_, _ = body.Write(d.Data())
		}
		return f.Header().Flags.Has(http2.FlagDataEndStream)
	})
	if body.String() != "got hello" {
		t.Errorf("got %q", body.String())
	}
}
