package marathonsim

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// serveEvents opens an event stream. What Jetty writes is written by hand,
// byte by byte: no chunks, lines that end in CRLF, the end of the connection
// as the only end.
func (nd *node) serveEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !slices.Contains(r.Header.Values("Accept"), "text/event-stream") {
		sendError(w, http.StatusMethodNotAllowed, "HTTP method GET is not supported by this URL")
		return
	}
	e := nd.s.engine
	query := r.URL.Query()
	sub := &subscriber{
		types: eventTypes(query["event_type"]), remote: remoteHost(r),
		light: e.profile.lightOnly || !e.profile.heavyPlans || query.Get("plan-format") == "light",
		queue: make(chan []byte, maxOutstanding), gone: make(chan struct{}),
	}
	if _, ok := e.faults.strike(FaultSilentStream, nil); ok {
		sub.silent.Store(true)
	}
	header := w.Header().Clone()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	sub.conn = conn
	defer conn.Close()
	nd.track(conn)
	defer nd.untrack(conn)
	stop := nd.stopped()
	header.Set("Content-Type", "text/event-stream;charset=utf-8")
	header.Set("Connection", "close")
	_, _ = io.WriteString(rw, "HTTP/1.1 200 OK\r\n")
	_ = header.Write(rw)
	_, _ = io.WriteString(rw, "\r\n")
	if rw.Flush() != nil {
		return
	}
	if !e.do(func() { e.bus.attach(sub) }) {
		return
	}
	defer e.post(func() { e.bus.detach(sub) })

	// A client that goes is noticed by its end of the connection.
	nd.handlers.Go(func() {
		_, _ = io.Copy(io.Discard, rw)
		sub.close()
	})
	beat := time.NewTicker(max(e.clock.wall(e.cfg.Heartbeat), time.Millisecond))
	defer beat.Stop()
	for {
		var frame []byte
		select {
		case frame = <-sub.queue:
		case <-beat.C:
			frame = []byte("\r\n")
		case <-sub.gone:
			return
		case <-stop:
			return
		}
		if sub.silent.Load() {
			continue
		}
		if _, cut := e.faults.strike(FaultTruncatedFrame, nil); cut {
			_, _ = conn.Write(frame[:len(frame)/2])
			return
		}
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}

func remoteHost(r *http.Request) string {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return host
}

// track keeps a connection that was taken from the server among those that a
// crash resets.
func (nd *node) track(c net.Conn) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if !nd.up {
		c.Close()
		return
	}
	nd.conns[c] = struct{}{}
}

func (nd *node) untrack(c net.Conn) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	delete(nd.conns, c)
}

// relayEvents hands the leader's stream on, for versions whose standbys proxy
// it.
func (nd *node) relayEvents(w http.ResponseWriter, resp *http.Response, via string) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	nd.track(conn)
	defer nd.untrack(conn)
	h := resp.Header.Clone()
	h.Add("X-Marathon-Via", via)
	h.Set("Connection", "close")
	_, _ = io.WriteString(rw, "HTTP/1.1 200 OK\r\n")
	_ = h.Write(rw)
	_, _ = io.WriteString(rw, "\r\n")
	if rw.Flush() != nil {
		return
	}
	nd.handlers.Go(func() {
		_, _ = io.Copy(io.Discard, rw)
		resp.Body.Close()
	})
	_, _ = io.Copy(conn, bufio.NewReader(resp.Body))
}
