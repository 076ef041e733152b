//go:build linux

package docker

import (
	"bytes"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// wire stands between a backend and an engine, and can be cut or stopped.
type wire struct {
	path, to string

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
	hang  chan struct{} // not nil while nothing passes
	calls []call
	done  sync.WaitGroup
}

// call is a call that passed, with when it came and when its answer began.
type call struct {
	line            string // method and path
	asked, answered time.Time
}

// last returns the last call of which the line has a part.
func (w *wire) last(part string) (call, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range slices.Backward(w.calls) {
		if strings.Contains(c.line, part) {
			return c, true
		}
	}
	return call{}, false
}

// count counts the calls of which the line has a part.
func (w *wire) count(part string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if strings.Contains(c.line, part) {
			n++
		}
	}
	return n
}

// note takes note of what passes over a connection: a request, or the beginning
// of its answer. It returns the call that the connection is about.
func (w *wire) note(said []byte, number *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, method := range []string{"GET ", "POST ", "HEAD ", "DELETE "} {
		if bytes.HasPrefix(said, []byte(method)) {
			line, _, _ := strings.Cut(string(said), " HTTP/")
			*number = len(w.calls)
			w.calls = append(w.calls, call{line: line, asked: now})
			return
		}
	}
	if n := *number; n < len(w.calls) && w.calls[n].answered.IsZero() && bytes.HasPrefix(said, []byte("HTTP/1.1 ")) {
		w.calls[n].answered = now
	}
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	w := &wire{path: filepath.Join(t.TempDir(), "s"), to: to, conns: make(map[net.Conn]bool)}
	w.restore()
	t.Cleanup(func() {
		w.release()
		w.cut()
		w.done.Wait()
	})
	return w
}

func (w *wire) host() string { return "unix://" + w.path }

// cut makes the engine unreachable.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ln != nil {
		w.ln.Close()
		w.ln = nil
	}
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) restore() {
	ln, err := net.Listen("unix", w.path)
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	w.ln = ln
	w.mu.Unlock()
	w.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.done.Go(func() { w.pass(c) })
		}
	})
}

// stop lets nothing pass: connections are accepted, and nothing is answered.
func (w *wire) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hang = make(chan struct{})
}

// release ends a stop. What was said meanwhile is lost.
func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hang == nil {
		return
	}
	close(w.hang)
	w.hang = nil
}

// wait waits while nothing passes, and says whether it had to.
func (w *wire) wait() bool {
	w.mu.Lock()
	hang := w.hang
	w.mu.Unlock()
	if hang == nil {
		return false
	}
	<-hang
	return true
}

func (w *wire) track(c net.Conn, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if open {
		w.conns[c] = true
	} else {
		delete(w.conns, c)
	}
}

func (w *wire) pass(c net.Conn) {
	defer c.Close()
	w.track(c, true)
	defer w.track(c, false)
	up, err := net.Dial("unix", w.to)
	if err != nil {
		return
	}
	defer up.Close()
	w.track(up, true)
	defer w.track(up, false)
	var both sync.WaitGroup
	number := math.MaxInt // answers come after their requests
	both.Go(func() { w.copy(up, c, &number) })
	both.Go(func() { w.copy(c, up, &number) })
	both.Wait()
}

// copy passes on what comes, unless the wire is stopped when it does.
func (w *wire) copy(to, from net.Conn, number *int) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if w.wait() {
				return
			}
			w.note(buf[:n], number)
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
