package marathonsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A node is one Marathon process as a client sees it: an address. All nodes
// stand before one engine; the one that is the leader answers, the others
// hand on.
type node struct {
	s      *Sim
	n      int
	addr   string
	client *http.Transport // to the leader

	mu       sync.Mutex
	up       bool
	away     bool // it does not come back by itself
	srv      *http.Server
	conns    map[net.Conn]struct{}
	handlers sync.WaitGroup
	stop     chan struct{} // closed when this run of the node ends
}

// start opens the node's address, again after a restart.
func (nd *node) start() error {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if nd.up || nd.away {
		return nil
	}
	ln, err := net.Listen("tcp", nd.addr)
	if err != nil {
		return err
	}
	if nd.srv == nil {
		nd.addr = ln.Addr().String() // from now on it is always this one
	}
	nd.up = true
	nd.conns = map[net.Conn]struct{}{}
	nd.stop = make(chan struct{})
	srv := &http.Server{Handler: nd, ConnState: nd.connState}
	nd.srv = srv
	nd.handlers.Go(func() { _ = srv.Serve(ln) })
	return nil
}

func (nd *node) connState(c net.Conn, state http.ConnState) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	switch state {
	case http.StateNew:
		if !nd.up {
			c.Close()
			return
		}
		nd.conns[c] = struct{}{}
	case http.StateClosed:
		delete(nd.conns, c)
	}
}

// crash ends the node as the exit of its process does: the address refuses,
// and what was open is reset.
func (nd *node) crash() {
	nd.mu.Lock()
	if !nd.up {
		nd.mu.Unlock()
		return
	}
	nd.up = false
	close(nd.stop)
	srv := nd.srv
	for c := range nd.conns {
		reset(c)
	}
	nd.mu.Unlock()
	_ = srv.Close()
	nd.client.CloseIdleConnections()
}

// reset closes a connection with RST.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

func (nd *node) setAway(away bool) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.away = away
}

func (nd *node) isUp() bool {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	return nd.up
}

// stopped is closed when the present run of the node ends.
func (nd *node) stopped() <-chan struct{} {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	return nd.stop
}

// hold waits for d of the simulator's time; it returns false when the client
// or the node went away.
func (nd *node) hold(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(nd.s.engine.clock.wall(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-nd.stopped():
	}
	return false
}

// enter counts a handler; a node that has crashed has none any more.
func (nd *node) enter() bool {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if nd.up {
		nd.handlers.Add(1)
	}
	return nd.up
}

func (nd *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !nd.enter() {
		panic(http.ErrAbortHandler)
	}
	defer nd.handlers.Done()
	f := nd.s.engine.faults
	if _, ok := f.ofRequest(FaultHang, nd.n, r.Method, r.URL.Path); ok {
		nd.hold(r, 24*time.Hour)
		panic(http.ErrAbortHandler)
	}
	if x, ok := f.ofRequest(FaultLatency, nd.n, r.Method, r.URL.Path); ok && !nd.hold(r, x.Delay) {
		panic(http.ErrAbortHandler)
	}
	if x, ok := f.ofRequest(FaultStatus, nd.n, r.Method, r.URL.Path); ok {
		status := x.Status
		if status == 0 {
			status = http.StatusInternalServerError
		}
		sendError(w, status, http.StatusText(status))
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 32<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if !nd.s.authenticate(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, nd.s.cfg.BasePath)
	if !ok {
		sendError(w, http.StatusNotFound, "Not Found")
		return
	}

	// As many tries as Marathon makes until it knows the leader.
	for try := 0; ; try++ {
		leader := nd.s.leader()
		switch {
		case leader == nd:
			if nd.serve(w, r, path, body) {
				return
			}
		case leader != nil:
			nd.forward(w, r, leader, path, body)
			return
		}
		if try == 11 {
			sendError(w, http.StatusBadGateway, "Could not determine the current leader")
			return
		}
		if !nd.hold(r, 250*time.Millisecond) {
			panic(http.ErrAbortHandler)
		}
	}
}

// serve answers as the leader. It returns false when the leadership has gone
// in between.
func (nd *node) serve(w http.ResponseWriter, r *http.Request, path string, body []byte) bool {
	h := w.Header()
	h.Set("X-Marathon-Leader", "http://"+nd.addr)
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-XSS-Protection", "1; mode=block")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "0")
	if path == "/v2/events" {
		nd.serveEvents(w, r)
		return true
	}
	var resp *response
	e := nd.s.engine
	q := newRequest(r, path, body)
	if !e.do(func() {
		if e.leading {
			e.log("request", "", "", "%s %s", r.Method, r.URL.RequestURI())
			resp = nd.s.route(q)
		}
	}) {
		panic(http.ErrAbortHandler)
	}
	if resp == nil {
		return false
	}
	if resp.wait != nil {
		select {
		case <-resp.wait:
		case <-r.Context().Done():
		case <-nd.stopped():
		}
	}
	nd.write(w, r, resp)
	return true
}

// write sends the answer, as well as the faults in force let it.
func (nd *node) write(w http.ResponseWriter, r *http.Request, resp *response) {
	f := nd.s.engine.faults
	if _, ok := f.ofRequest(FaultReset, nd.n, r.Method, r.URL.Path); ok {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			reset(c)
		}
		return
	}
	data := resp.bytes()
	for k, v := range resp.header {
		w.Header().Set(k, v)
	}
	if len(data) > 0 || resp.status == http.StatusOK {
		w.Header().Set("Content-Type", resp.contentType())
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	w.WriteHeader(resp.status)
	if _, ok := f.ofRequest(FaultTruncate, nd.n, r.Method, r.URL.Path); ok {
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if x, ok := f.ofRequest(FaultSlowBody, nd.n, r.Method, r.URL.Path); ok {
		for piece := 1 + len(data)/10; len(data) > 0; {
			n := min(piece, len(data))
			_, _ = w.Write(data[:n])
			_ = http.NewResponseController(w).Flush()
			data = data[n:]
			if !nd.hold(r, x.Delay) {
				panic(http.ErrAbortHandler)
			}
		}
		return
	}
	_, _ = w.Write(data)
}

// forward hands a request on to the leader, as a standby does. It can lead in
// a circle when two nodes do not agree on the leader.
func (nd *node) forward(w http.ResponseWriter, r *http.Request, leader *node, path string, body []byte) {
	via := "1.1 " + nd.addr
	target := "http://" + leader.addr + r.URL.RequestURI()
	if path == "/v2/events" {
		f := nd.s.engine.faults
		if _, ok := f.strike(FaultLoop, nil); ok {
			target = "http://" + nd.addr + r.URL.RequestURI()
		}
		if _, ok := f.strike(FaultDeadEnd, nil); ok {
			target = "http://" + nd.s.deadEnd + r.URL.RequestURI()
		}
		if nd.s.engine.profile.redirectEvents {
			w.Header().Set("Location", target)
			w.WriteHeader(http.StatusFound)
			return
		}
	}
	if slices.Contains(r.Header.Values("X-Marathon-Via"), via) {
		sendError(w, http.StatusBadGateway, "Detected proxying loop.")
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out, err := http.NewRequestWithContext(ctx, r.Method, target, strings.NewReader(string(body)))
	if err != nil {
		sendError(w, http.StatusInternalServerError, "")
		return
	}
	for k, vs := range r.Header {
		if k != "Connection" && k != "Content-Length" {
			out.Header[k] = vs
		}
	}
	out.Header.Add("X-Marathon-Via", via)
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if before := r.Header.Get("X-Forwarded-For"); before != "" {
		host = before + "," + host
	}
	out.Header.Set("X-Forwarded-For", host)
	resp, err := nd.client.RoundTrip(out)
	if err != nil {
		words := "Failed to successfully establish a connection to the leader."
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			words = "Connection to leader refused."
		}
		sendError(w, http.StatusBadGateway, words)
		return
	}
	defer resp.Body.Close()
	if path == "/v2/events" && resp.StatusCode == http.StatusOK {
		nd.relayEvents(w, resp, via)
		return
	}
	maps.Copy(w.Header(), resp.Header)
	w.Header().Add("X-Marathon-Via", via)
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// sendError is a page of the servlet container, not of Marathon: HTML.
func sendError(w http.ResponseWriter, status int, words string) {
	w.Header().Set("Content-Type", "text/html;charset=iso-8859-1")
	w.Header().Set("Cache-Control", "must-revalidate,no-cache,no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html>\n<head>\n<title>Error %d %s</title>\n</head>\n<body><h2>HTTP ERROR %d</h2>\n<p>Reason:\n<pre>    %s</pre></p>\n</body>\n</html>\n",
		status, words, status, words)
}
