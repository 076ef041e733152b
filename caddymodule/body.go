package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// aheadMax is how much of a body is read while the request waits.
	aheadMax = 64 << 10
	// aheadFirst is the first step in which it is read.
	aheadFirst = 4 << 10
	// aheadMaxInAll bounds what is read over all services.
	aheadMaxInAll = 64 << 20
)

// requestBody is the body of a request that may have to wait; nil if it has
// none.
//
// net/http notices that an HTTP/1.1 client has gone only once the body was
// read to its end. So while such a request waits, a goroutine reads its
// beginning: if that is all of it, a gone client ends the wait. The body then
// is what was read, followed by the rest; an error is passed on where it
// occurred.
type requestBody struct {
	rest   io.ReadCloser
	http1  bool
	length int64
	held   *atomic.Int64 // bytes read ahead over all services

	mu      sync.Mutex
	ahead   []byte // read ahead, not yet taken
	taken   int
	charged int64         // of held: the room of ahead
	reading chan struct{} // closed when the goroutine has ended; nil without one
	gone    chan struct{} // closed if it finds the connection broken
	stop    bool          // the goroutine shall end after the read it is in
	err     error         // that ended the body, when everything ahead was taken
	broken  bool          // a read failed other than by the end
	ended   bool

	// withheld is true while an attempt fails to which nothing is to be
	// written: the body is left for the next one.
	withheld bool
}

var errWithheld = errors.New("it is not known where the connection leads")

// withhold keeps the body from being read and closed, or no longer does so.
func (b *requestBody) withhold(on bool) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.withheld = on
}

func newRequestBody(r *http.Request, held *atomic.Int64) *requestBody {
	return &requestBody{rest: r.Body, http1: r.ProtoMajor == 1, length: r.ContentLength, held: held}
}

// readAhead begins to read, where that is of use. The channel is closed if
// the connection turns out to be broken.
func (b *requestBody) readAhead() <-chan struct{} {
	if b == nil || !b.http1 || b.length > aheadMax {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading != nil {
		// It still hangs in a read that it began in an earlier wait.
		b.stop = false
		return b.gone
	}
	if b.err != nil || len(b.ahead) > aheadMax {
		return nil
	}
	if b.held.Load() >= aheadMaxInAll {
		return nil
	}
	b.stop = false
	b.gone = make(chan struct{})
	b.reading = make(chan struct{})
	go b.read(b.gone, b.reading)
	return b.gone
}

// read is the goroutine. It ends at the end of the body, at the limit, or
// after the read during which it was told to stop.
func (b *requestBody) read(gone, done chan struct{}) {
	defer close(done)
	for {
		b.mu.Lock()
		if b.stop || !b.hasRoom() {
			b.reading = nil
			b.mu.Unlock()
			return
		}
		room := b.ahead[len(b.ahead):cap(b.ahead)]
		b.mu.Unlock()

		n, err := b.rest.Read(room)

		b.mu.Lock()
		b.ahead = b.ahead[:len(b.ahead)+n]
		if err != nil {
			b.fail(err)
		}
		if b.err != nil || b.stop {
			b.reading = nil
			b.mu.Unlock()
			if err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)) {
				close(gone)
			}
			return
		}
		b.mu.Unlock()
	}
}

// hasRoom makes room for what is read next, as far as the limits allow. It
// doubles, so that a client that announces much and sends little is given
// little; and all of it is charged for, used or not.
func (b *requestBody) hasRoom() bool {
	size := cap(b.ahead)
	if len(b.ahead) < size {
		return true
	}
	// One byte more than the limit: a body that is just as long ends there,
	// which only a further read tells.
	most := aheadMax + 1
	if b.length > 0 {
		most = int(b.length) + 1
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
	if b.held.Add(n) > aheadMaxInAll {
		b.held.Add(-n)
		return false
	}
	b.charged += n
	return true
}

func (b *requestBody) fail(err error) {
	b.err = err
	b.ended = true
	b.broken = !errors.Is(err, io.EOF)
}

// stopReadingAhead lets the goroutine end after the read it is in. A grant
// does not wait for that.
func (b *requestBody) stopReadingAhead() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.stop = true
	b.mu.Unlock()
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	for {
		b.mu.Lock()
		if b.withheld {
			b.mu.Unlock()
			return 0, errWithheld
		}
		if b.taken < len(b.ahead) {
			n := copy(p, b.ahead[b.taken:])
			b.taken += n
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
			n, err := b.rest.Read(p)
			if err != nil {
				b.mu.Lock()
				b.fail(err)
				b.mu.Unlock()
			}
			return n, err
		}
		// The goroutine is in a read: what it gets comes first.
		<-reading
	}
}

// Close implements io.Closer.
func (b *requestBody) Close() error {
	b.mu.Lock()
	withheld := b.withheld
	b.mu.Unlock()
	if withheld {
		return nil
	}
	return b.rest.Close()
}

// failed says whether reading the body failed: then an error of the proxy
// tells nothing about the instance.
func (b *requestBody) failed() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

// abandon gives up a body that has not ended, before an answer is written
// that does not depend on it: net/http would wait for the rest of an HTTP/1.1
// body before it sends the answer.
func (b *requestBody) abandon(w http.ResponseWriter) {
	if b == nil || !b.http1 {
		return
	}
	b.mu.Lock()
	ended := b.ended
	b.stop = true
	b.mu.Unlock()
	if !ended {
		// Nothing can be read from the connection after that.
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	}
}

// end waits for the goroutine and gives back what it was charged.
func (b *requestBody) end(w http.ResponseWriter) {
	if b == nil {
		return
	}
	b.mu.Lock()
	reading := b.reading
	b.stop = true
	b.mu.Unlock()
	if reading != nil {
		// It hangs in a read of a client that sends nothing although it has
		// its answer. The server would wait for that just the same.
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		<-reading
	}
	if b.charged > 0 {
		b.held.Add(-b.charged)
		b.charged = 0
	}
}
