package caddymodule

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// The unread rest of a body must never be parsed as the next request. net/http
// closes the connection in that case, or reads the rest. But it checks only the
// body that it made itself, and Caddy replaces that one. A body that was closed
// early, or whose read failed, then counts as read. So Usher tracks every body
// that it passes on, and closes the connection if the rest may still arrive.

const (
	// drainMax is how much of an unwanted body is read to keep the connection
	// open. net/http has the same limit.
	drainMax = 256 << 10
	// drainWait is how long the answer waits for the rest of such a body.
	drainWait = 250 * time.Millisecond
	// stallWait is how long an instance's answer waits for a client that
	// stalls in the middle of its body.
	stallWait = time.Second

	// After an answer that closes the connection, the client may still be
	// sending. Closing at once would send a reset, and the client's kernel
	// would drop the answer. So Usher keeps reading within these limits: on
	// the bytes, on the time in all, and on the time since the last byte.
	lingerMax   = 16 << 20
	lingerTotal = 5 * time.Second
	lingerStall = time.Second
)

// Close implements io.Closer. Like net/http's own body it reads the rest,
// within limits. It records whether it reached the end.
//
// A transport can close the body after the handlers have returned. By then
// net/http may be reading the rest itself, and a body that is closed under that
// read counts as read to its end. So a late Close leaves the body alone.
func (b *requestBody) Close() error {
	b.mu.Lock()
	if b.withheld || b.closed || b.over {
		b.mu.Unlock()
		return nil
	}
	b.closed, b.stop = true, true
	closing := make(chan struct{})
	b.closing = closing
	defer close(closing)
	reading := b.reading
	// A client that waits for "100 Continue" has sent nothing yet.
	drain := b.http1 && !b.ended && !b.broken && (b.got > 0 || reading != nil || !b.expects) &&
		b.length-b.got <= drainMax
	b.mu.Unlock()
	if drain {
		if reading != nil {
			<-reading
		}
		b.discardUnwanted()
	}
	b.shared.leave(b)
	return b.rest.Close()
}

// discardUnwanted reads what keeps the connection open. It reads one byte more
// than drainMax, as net/http does: only a further read shows that a body of just
// that length has ended.
func (b *requestBody) discardUnwanted() (more bool) { return b.discard(drainMax + 1) }

// discard reads and drops at most n bytes. It reports whether more of the body
// can be read.
func (b *requestBody) discard(n int) bool {
	var scratch []byte
	for n > 0 {
		b.mu.Lock()
		over := b.err != nil
		b.mu.Unlock()
		if over {
			return false
		}
		if scratch == nil {
			scratch = make([]byte, 8<<10)
		}
		got, err := b.pull(scratch[:min(n, len(scratch))])
		n -= got
		b.mu.Lock()
		b.note(got, err)
		if l := b.leaving; l != nil && err == nil {
			l.extend()
		}
		b.mu.Unlock()
	}
	return true
}

// mustClose says whether the connection has to close after the answer: the
// rest of the body may still arrive and net/http does not know that, or the
// connection cannot be read any more. A client that asked for the close itself
// is included: without this, net/http would reset the connection while the
// client still sends, and the client could lose the answer. The lock is held.
func (b *requestBody) mustClose() bool {
	return b.cut || !b.ended && (b.closed || b.broken || b.over && (b.last || b.duplex && !b.lost))
}

// settle runs before the header of the answer is written, and again when the
// request ends. If the body was closed before its end, it has the connection
// closed after the answer.
func (b *requestBody) settle(w http.ResponseWriter) {
	if b == nil || !b.http1 {
		return
	}
	b.mu.Lock()
	closing := b.closing
	b.mu.Unlock()
	if closing != nil {
		if !b.duplex {
			// net/http would wait for this, too.
			<-closing
		} else if !b.over {
			return
		}
	}
	b.mu.Lock()
	must := b.mustClose() && !b.tunnel
	b.mu.Unlock()
	if must {
		closeAfterAnswer(w)
	}
}

// unwanted reports whether no handler has read or closed the body.
func (b *requestBody) unwanted() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.asked && !b.closed
}

// upgraded records that an upgraded stream owns the connection now.
func (b *requestBody) upgraded() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.tunnel = true
	b.mu.Unlock()
}

// leaving is the state of a body that Usher gives up.
type leaving struct {
	control *http.ResponseController
	until   time.Time     // the last moment of reading; zero before the answer
	started bool          // the goroutine that reads was started
	first   chan struct{} // closed at the end of the body, or after drainMax
	done    chan struct{} // closed when that goroutine ends
}

// extend gives the client more time for its next bytes. The body's lock is
// held.
func (l *leaving) extend() {
	if l.until.IsZero() {
		return
	}
	deadline := time.Now().Add(lingerStall)
	if deadline.After(l.until) {
		deadline = l.until
	}
	_ = l.control.SetReadDeadline(deadline)
}

// giveUp runs before an answer that does not depend on the body. net/http
// would wait for the rest of an HTTP/1.1 body before it sends such an answer.
// giveUp waits for drainWait at most. If the body ends within that time, the
// connection stays open. If not, it closes after the answer, and the caller
// has to call linger.
func (b *requestBody) giveUp(w http.ResponseWriter) {
	if b == nil || !b.http1 {
		return
	}
	b.mu.Lock()
	b.stop = true
	if b.ended || b.tunnel || b.leaving != nil {
		b.mu.Unlock()
		return
	}
	reading := b.reading
	l := &leaving{control: http.NewResponseController(w), first: make(chan struct{}), done: make(chan struct{})}
	b.leaving = l
	// A client that waits for "100 Continue" gets its answer instead.
	unsent := b.expects && b.got == 0 && reading == nil
	if b.closed || b.err != nil || unsent || b.length-b.got > drainMax {
		b.mu.Unlock()
		closeAfterAnswer(w)
		return
	}
	l.started = true
	b.mu.Unlock()
	go b.drain(reading, l)
	timer := time.NewTimer(drainWait)
	defer timer.Stop()
	select {
	case <-l.first:
	case <-timer.C:
	}
	b.mu.Lock()
	ended := b.ended
	b.mu.Unlock()
	if !ended {
		closeAfterAnswer(w)
	}
}

// drain reads a body that Usher gives up. linger or end bounds its time.
func (b *requestBody) drain(reading chan struct{}, l *leaving) {
	defer close(l.done)
	if reading != nil {
		<-reading
	}
	more := b.discardUnwanted()
	close(l.first)
	if more {
		b.discard(lingerMax - drainMax)
	}
}

// linger runs after the answer was written. It flushes the answer, then reads
// what the client still sends, so that the client gets the answer and not a
// reset. An answer without a length ends only when the handlers have returned.
// Such an answer is left to net/http, which keeps the connection half open for
// a moment.
func (b *requestBody) linger(w http.ResponseWriter) {
	if b == nil {
		return
	}
	b.mu.Lock()
	l := b.leaving
	if l == nil || b.closed || b.err != nil || b.tunnel {
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	if w.Header()["Content-Length"] == nil || l.control.Flush() != nil {
		return
	}
	b.mu.Lock()
	l.until = time.Now().Add(lingerTotal)
	l.extend()
	if !l.started {
		l.started = true
		go b.drain(b.reading, l)
	}
	b.mu.Unlock()
	select {
	case <-l.done:
	case <-time.After(lingerTotal + lingerStall):
		// The writer does not support deadlines.
	}
}

// end runs when the handlers have returned. It has the connection closed if
// the rest of the body may still arrive, and returns the charged memory.
func (b *requestBody) end(w http.ResponseWriter) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.over, b.stop = true, true
	reading, l := b.reading, b.leaving
	if reading == nil {
		b.discharge()
	}
	b.mu.Unlock()
	b.shared.leave(b)
	if !b.http1 || b.tunnel {
		// The end of the stream, or the upgrade, ends a read in progress.
		return
	}
	if l != nil && l.started {
		b.interrupt(w, l.done)
	} else if reading != nil {
		b.await(w, reading)
	} else if b.last || b.duplex {
		b.stopTransport(w)
	}
	b.settle(w)
}

// stopTransport ends the read that a transport has in progress after an early
// answer, before a connection closes. net/http cannot stop such a read if the
// body ends at that moment. Its connReader.abortPendingRead waits until no read
// is in progress, and meanwhile the end of the body starts another one
// (startBackgroundRead), which clears the deadline that was to stop it. The
// connection then stays open until the client sends something. If net/http does
// not close the connection after the answer, it reads the rest of the body
// itself before that, so this cannot happen.
func (b *requestBody) stopTransport(w http.ResponseWriter) {
	if b.pulling.TryLock() {
		b.pulling.Unlock()
		return
	}
	b.mu.Lock()
	b.cut = b.err == nil
	cut := b.cut
	b.mu.Unlock()
	if cut && http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) != nil {
		return
	}
	b.pulling.Lock()
	b.pulling.Unlock() //nolint:staticcheck // this waits for the end of the read
}

// await waits for the goroutine's current read. net/http would wait for it,
// too, before it sends the answer, only longer.
func (b *requestBody) await(w http.ResponseWriter, reading chan struct{}) {
	if !b.last && !b.duplex {
		timer := time.NewTimer(stallWait)
		defer timer.Stop()
		select {
		case <-reading:
			return
		case <-timer.C:
		}
	}
	b.interrupt(w, reading)
}

// interrupt ends the reading of the body, unless the body has ended already. The
// deadline also fails net/http's own read for the next request, which cancels
// every later request of the connection. So the connection has to close, even
// if the body came to its end just before.
func (b *requestBody) interrupt(w http.ResponseWriter, reading chan struct{}) {
	b.mu.Lock()
	b.cut = b.err == nil
	cut := b.cut
	b.mu.Unlock()
	if cut && http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) != nil {
		return
	}
	<-reading
}

// closeAfterAnswer has net/http close the connection after the answer. net/http
// first closes only its sending side, so that the client still gets the answer.
func closeAfterAnswer(w http.ResponseWriter) {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = u.Unwrap()
	}
	// For writers that are not net/http's.
	w.Header().Set("Connection", "close")
	// A MaxBytesReader that hits its limit tells net/http that the body will
	// not be read to its end. This works after the header is written, too.
	_, _ = http.MaxBytesReader(w, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}
