package answer

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// idleWriter is for one goroutine, as what Caddy puts around the response of a
// server with a write_idle_timeout, and sets its own deadline before a write.
type idleWriter struct {
	caddyhttp.ResponseWriterWrapper
	t    *testing.T
	busy atomic.Bool
}

func (w *idleWriter) SetWriteDeadline(deadline time.Time) error {
	if w.busy.Load() {
		w.t.Error("a deadline is set while another goroutine writes")
	}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(deadline)
}

func (w *idleWriter) Write(p []byte) (int, error) {
	w.busy.Store(true)
	defer w.busy.Store(false)
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(EventPatience))
	return w.ResponseWriter.Write(p)
}

func TestAnEventStreamThatItsClientDoesNotReadEndsWithTheServer(t *testing.T) {
	t.Parallel()
	events, end, ended := make(chan Event), make(chan struct{}), make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = Stream(&idleWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, t: t}, r, end, events)
		close(ended)
	}))
	srv.Config.RegisterOnShutdown(func() { close(end) })
	srv.Start()
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	// More than the buffers of both ends hold: the stream hangs in a write.
	big := Event{Name: "state", Data: []byte(`"` + strings.Repeat("x", 64<<10) + `"`)}
	for hangs := false; !hangs; {
		select {
		case events <- big:
		case <-time.After(time.Second):
			hangs = true
		}
	}
	began := time.Now()
	if err := srv.Config.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
