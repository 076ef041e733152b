package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// aheadMax is how much of an HTTP/1.1 body is read while the request
	// waits.
	aheadMax = 64 << 10
	// aheadMaxStream is the same limit for HTTP/2 and HTTP/3, where a body
	// shares its connection with other requests.
	aheadMaxStream = 4 << 20
	// aheadFirst is the size of the first buffer.
	aheadFirst = 4 << 10
	// aheadMaxInAll limits the memory for read-ahead over all services.
	aheadMaxInAll = 64 << 20
	// aheadKept is the part of it that is reserved for HTTP/1.1, where Usher
	// must read ahead to notice that a client has gone.
	aheadKept = 16 << 20
)

// requestBody is the body of a request that may have to wait. It is nil for a
// request without a body.
//
// net/http notices that an HTTP/1.1 client has gone only after the body was
// read to its end. So while such a request waits, a goroutine reads the
// beginning of the body. If the body ends there, a client that leaves ends the
// wait. In HTTP/2 and HTTP/3 an unread body fills the connection's window and
// stops all other uploads of the connection. There the goroutine makes room
// for them. Handlers then read what was read ahead, followed by the rest. They
// get a read error at the place where it occurred.
//
// The goroutine ends after its current read. Over HTTP/2 and HTTP/3 it can
// outlast the handler: the end of the stream ends that read.
type requestBody struct {
	rest    io.ReadCloser
	http1   bool
	expects bool // the client sends nothing before it is told to continue
	last    bool // the client wants the connection closed after the answer
	duplex  bool // net/http leaves the body alone when it writes the answer
	length  int64
	held    *atomic.Int64 // memory for read-ahead over all services
	shared  *sharedConn   // nil for HTTP/1.1

	pulling sync.Mutex // held during a read of rest

	mu      sync.Mutex
	ahead   []byte        // what was read ahead
	taken   int           // how much of it handlers have read
	got     int64         // bytes read from rest
	charged int64         // this body's part of held: the capacity of ahead
	reading chan struct{} // closed when the goroutine ends; nil without one
	gone    chan struct{} // closed if the goroutine finds the connection broken
	stop    bool          // the goroutine ends after its current read
	over    bool          // the request is over: the goroutine returns the charged memory
	err     error         // what ended the body; handlers get it after ahead
	broken  bool          // a read failed
	lost    bool          // a handler read from the closed body
	ended   bool          // the body was read to its end

	asked   bool          // a handler has begun to read
	closed  bool          // a handler has closed it
	closing chan struct{} // closed when that is done; nil unless closed
	tunnel  bool          // the connection belongs to an upgraded stream
	cut     bool          // a read deadline has made the connection unusable
	leaving *leaving      // set while the body is given up; nil otherwise

	// withheld is true while an attempt fails before anything may be written.
	// The body stays untouched for the next attempt.
	withheld bool
}

var errWithheld = errors.New("it is not known where the connection leads")

// withhold keeps handlers from reading and closing the body while on is true.
func (b *requestBody) withhold(on bool) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.withheld = on
}

func newRequestBody(r *http.Request, held *atomic.Int64) *requestBody {
	b := &requestBody{rest: r.Body, http1: r.ProtoMajor == 1, length: r.ContentLength, held: held}
	b.expects = b.http1 && r.Header["Expect"] != nil
	b.last = b.http1 && r.Close
	return b
}

// refused returns a channel that is closed when the upload must be refused.
func (b *requestBody) refused() <-chan struct{} {
	if b == nil {
		return nil
	}
	return b.shared.refused(b)
}

// readAhead starts to read ahead where that helps. The channel it returns is
// closed if the connection turns out to be broken.
func (b *requestBody) readAhead() <-chan struct{} {
	if b == nil || b.http1 && b.length > aheadMax {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading != nil {
		// The goroutine of an earlier wait is still in its read.
		b.stop = false
		return b.gone
	}
	if b.err != nil || b.closed {
		return nil
	}
	if len(b.ahead) > b.most() || b.held.Load() >= b.mostInAll() || !b.http1 && b.length > 2*aheadMaxStream {
		b.full()
		return nil
	}
	b.stop = false
	b.gone = make(chan struct{})
	b.reading = make(chan struct{})
	go b.read(b.gone, b.reading)
	return b.gone
}

// most is how much of the body is read ahead.
func (b *requestBody) most() int {
	if b.http1 {
		return aheadMax
	}
	return aheadMaxStream
}

func (b *requestBody) mostInAll() int64 {
	if b.http1 {
		return aheadMaxInAll
	}
	return aheadMaxInAll - aheadKept
}

// full records that no more is read while the request waits. The lock is
// held.
func (b *requestBody) full() {
	if b.length < 0 || b.length-b.got > windowSpare {
		b.shared.full(b)
	}
}

// read is the goroutine. It ends at the end of the body, at the limit, or
// after the read during which stop was set.
func (b *requestBody) read(gone, done chan struct{}) {
	defer close(done)
	for {
		b.mu.Lock()
		if b.stop || !b.hasRoom() {
			if !b.stop {
				b.full()
			}
			b.endReading()
			b.mu.Unlock()
			return
		}
		room := b.ahead[len(b.ahead):cap(b.ahead)]
		b.mu.Unlock()

		n, err := b.pull(room)

		b.mu.Lock()
		b.ahead = b.ahead[:len(b.ahead)+n]
		b.note(n, err)
		if b.err != nil || b.stop {
			b.endReading()
			b.mu.Unlock()
			if err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)) {
				close(gone)
			}
			return
		}
		b.mu.Unlock()
	}
}

// pull reads from rest. A transport can still be in a read when another
// goroutine drains the body, and the readers that Caddy and its modules put
// around a body do not expect two reads at once.
func (b *requestBody) pull(p []byte) (int, error) {
	b.pulling.Lock()
	defer b.pulling.Unlock()
	return b.rest.Read(p)
}

// pullUnlessOver reads from rest for a handler. The request can be over by the
// time it is this reader's turn: see stopTransport.
func (b *requestBody) pullUnlessOver(p []byte) (int, error) {
	b.pulling.Lock()
	defer b.pulling.Unlock()
	b.mu.Lock()
	over := b.over
	b.mu.Unlock()
	if over {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.rest.Read(p)
}

// endReading records that the goroutine ends. The lock is held.
func (b *requestBody) endReading() {
	b.reading = nil
	if b.over {
		b.discharge()
	}
}

// hasRoom makes room for the next read, within the limits. The buffer doubles
// each time, so a client that announces much and sends little takes little
// memory. All of the buffer is charged, used or not.
func (b *requestBody) hasRoom() bool {
	size := cap(b.ahead)
	if len(b.ahead) < size {
		return true
	}
	// One byte more than the limit: only a further read shows that a body of
	// just that length has ended.
	most := b.most() + 1
	if b.length > 0 {
		most = min(int(b.length)+1, most)
	}
	grown := min(max(2*size, aheadFirst), most)
	if grown <= size || !b.charge(int64(grown-size)) {
		return false
	}
	ahead := make([]byte, len(b.ahead), grown)
	copy(ahead, b.ahead)
	b.ahead = ahead
	return true
}

func (b *requestBody) charge(n int64) bool {
	if b.held.Add(n) > b.mostInAll() {
		b.held.Add(-n)
		return false
	}
	if !b.shared.charge(n) {
		b.held.Add(-n)
		return false
	}
	b.charged += n
	return true
}

// discharge frees what was read ahead. The lock is held.
func (b *requestBody) discharge() {
	b.ahead, b.taken = nil, 0
	if b.charged > 0 {
		b.held.Add(-b.charged)
		b.shared.charge(-b.charged)
		b.charged = 0
	}
}

// note records the result of a read from rest. The lock is held.
func (b *requestBody) note(n int, err error) {
	b.got += int64(n)
	if err == nil || b.err != nil {
		return
	}
	b.err = err
	switch {
	case errors.Is(err, io.EOF):
		b.ended = true
		b.shared.leave(b)
	case errors.Is(err, http.ErrBodyReadAfterClose):
		// net/http has read the rest itself before it wrote the answer.
		b.lost = true
	default:
		b.broken = true
		b.shared.leave(b)
	}
}

// stopReadingAhead ends the goroutine after its current read. It does not wait
// for that, so a grant is never delayed.
func (b *requestBody) stopReadingAhead() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.stop = true
	b.mu.Unlock()
	b.shared.served(b)
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	for {
		b.mu.Lock()
		if b.withheld {
			b.mu.Unlock()
			return 0, errWithheld
		}
		if b.closed || b.over {
			// What is left is only the end of the body.
			b.lost = true
			b.mu.Unlock()
			return 0, http.ErrBodyReadAfterClose
		}
		b.asked = true
		if b.taken < len(b.ahead) {
			n := copy(p, b.ahead[b.taken:])
			b.taken += n
			if b.taken == len(b.ahead) && b.reading == nil {
				b.discharge()
			}
			b.mu.Unlock()
			return n, nil
		}
		if b.err != nil {
			err := b.err
			b.mu.Unlock()
			return 0, err
		}
		reading := b.reading
		b.mu.Unlock()
		if reading == nil {
			n, err := b.pullUnlessOver(p)
			if n > 0 || err != nil {
				b.mu.Lock()
				b.note(n, err)
				b.mu.Unlock()
			}
			return n, err
		}
		// The goroutine is in a read, and its bytes come first.
		<-reading
	}
}

// failed reports whether reading the body failed. If so, an error of the proxy
// says nothing about the instance.
func (b *requestBody) failed() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken || b.lost
}

// wasReadAhead reports whether a part of the body was read ahead. Handlers that
// have the original request would miss that part.
func (b *requestBody) wasReadAhead() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gone != nil
}
