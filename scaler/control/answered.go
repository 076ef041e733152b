package control

import (
	"net"
	"sync"
)

// wrongAnswer is the error of a readiness check that got an answer, but not
// the right one.
type wrongAnswer struct {
	// words are for clients, too: they hold nothing that the instance wrote.
	words string
	err   error
}

func (w *wrongAnswer) Error() string {
	if w.err == nil {
		return w.words
	}
	return w.words + ": " + w.err.Error()
}

func (w *wrongAnswer) Unwrap() error { return w.err }

// firstBytes keeps the first bytes that come over a connection: they tell
// which protocol an instance speaks that does not speak the expected one.
type firstBytes struct {
	net.Conn

	mu   sync.Mutex // a transport may read on when it has given up
	seen [9]byte
	n    int
}

// Read implements net.Conn.
func (f *firstBytes) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n += copy(f.seen[f.n:], p[:n])
	return n, err
}

// explain adds to the error of a GET what protocol the instance speaks.
func (f *firstBytes) explain(err error, scheme string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case scheme == "http" && f.settingsFrame():
		return &wrongAnswer{"it speaks HTTP/2 without TLS only (h2c), and the readiness check HTTP/1.1: use 'ready tcp', and 'transport http { versions h2c }'", err}
	case scheme == "http" && f.tlsRecord():
		return &wrongAnswer{"it speaks TLS, and the readiness check does not: use 'ready http { scheme https }', and 'transport http { tls }'", err}
	case scheme == "https" && f.n >= 5 && string(f.seen[:5]) == "HTTP/":
		return &wrongAnswer{"it does not speak TLS, and the readiness check does: leave out 'scheme https'", err}
	}
	return err
}

// settingsFrame says whether the bytes are the SETTINGS with which an HTTP/2
// server begins: 24 bits of length in entries of 6 bytes, type 4, no flags,
// stream 0.
func (f *firstBytes) settingsFrame() bool {
	if f.n < len(f.seen) {
		return false
	}
	b := f.seen
	length := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	return length%6 == 0 && length <= 1<<14 && b[3] == 4 && b[4] == 0 && b[5]|b[6]|b[7]|b[8] == 0
}

// tlsRecord says whether the bytes begin a record of TLS: an alert or a
// handshake of version 3.
func (f *firstBytes) tlsRecord() bool {
	return f.n >= 3 && (f.seen[0] == 0x15 || f.seen[0] == 0x16) && f.seen[1] == 3 && f.seen[2] <= 4
}
