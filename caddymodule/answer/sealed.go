package answer

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// sealedWriter writes an answer that Usher gives itself, so that the handlers
// around Usher leave it as it is. They were configured for the answers of the
// service:
//
//   - `templates` would run the page as a template of the site, and the page
//     contains texts of the client and of instances;
//   - a deferred `header` block would set Cache-Control, and a proxy in front
//     would store a 503.
//
// Both act when the header of the answer is written. So the answer passes them
// with a content type that says nothing, and the writer next to the server
// puts the real headers in place. All other headers that such handlers set or
// remove stay as they want them.
type sealedWriter struct {
	caddyhttp.ResponseWriterWrapper
	last  *lastWriter // nil without handlers around
	shown bool        // the handlers around see the content type
	sent  bool
}

// sealedHeaders are the headers of Usher's answers that no handler changes.
var sealedHeaders = []string{
	"Cache-Control", "Content-Security-Policy", "Content-Language", "Refresh", "Retry-After", HeaderError,
	"X-Content-Type-Options", "Grpc-Status", "Grpc-Message",
}

// typeSealed is the content type with which a sealed answer passes the
// handlers around.
const TypeSealed = "application/octet-stream"

// seal returns a writer for an answer of Usher's own to the client of w.
func Seal(w http.ResponseWriter) *sealedWriter {
	s := &sealedWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	if slot := lastSlot(w); slot != nil { //nolint:bodyclose // a writer of responses, not a response
		s.last = &lastWriter{slot: slot}
		s.last.ResponseWriter = *slot
	}
	return s
}

// sealShown is seal for an answer without foreign texts: the handlers around
// may compress it.
func SealShown(w http.ResponseWriter) *sealedWriter {
	s := Seal(w)
	s.shown = true
	return s
}

// WriteHeader implements http.ResponseWriter.
func (s *sealedWriter) WriteHeader(status int) {
	if !s.sent && !Informational(status) {
		s.close()
	}
	s.ResponseWriter.WriteHeader(status)
}

// close hides the headers from the handlers around, and hangs up the writer
// that puts them back.
func (s *sealedWriter) close() {
	s.sent = true
	if s.last == nil {
		return
	}
	h := s.Header()
	s.last.kept = make(http.Header)
	for _, name := range sealedHeaders {
		if v, ok := h[name]; ok {
			s.last.kept[name] = v
		}
	}
	if v, ok := h["Content-Type"]; ok && !s.shown {
		s.last.hides, s.last.contentType = true, v
		h["Content-Type"] = []string{TypeSealed}
	}
	*s.last.slot = s.last
}

// Write implements http.ResponseWriter.
func (s *sealedWriter) Write(b []byte) (int, error) {
	s.implicit()
	return s.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom.
func (s *sealedWriter) ReadFrom(r io.Reader) (int64, error) {
	s.implicit()
	return s.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError implements the flushing of http.ResponseController.
func (s *sealedWriter) FlushError() error {
	s.implicit()
	return http.NewResponseController(s.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker.
func (s *sealedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.sent = true // there is no header any more
	return http.NewResponseController(s.ResponseWriter).Hijack()
}

func (s *sealedWriter) implicit() {
	if !s.sent {
		s.WriteHeader(http.StatusOK)
	}
}

// informational says whether an answer follows after this status.
func Informational(status int) bool {
	return status >= 100 && status < 200 && status != http.StatusSwitchingProtocols
}

// lastWriter is the last to see the header of a sealed answer. It takes itself
// out then.
type lastWriter struct {
	caddyhttp.ResponseWriterWrapper
	slot        *http.ResponseWriter // where it hangs
	kept        http.Header
	hides       bool
	contentType []string // may be nil: that keeps net/http from guessing one
	open        bool
}

// WriteHeader implements http.ResponseWriter.
func (l *lastWriter) WriteHeader(status int) {
	if !Informational(status) {
		l.unseal()
	}
	l.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (l *lastWriter) Write(b []byte) (int, error) {
	l.unseal()
	return l.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom.
func (l *lastWriter) ReadFrom(r io.Reader) (int64, error) {
	l.unseal()
	return l.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError implements the flushing of http.ResponseController.
func (l *lastWriter) FlushError() error {
	l.unseal()
	return http.NewResponseController(l.ResponseWriter).Flush()
}

// unseal puts the headers in place.
func (l *lastWriter) unseal() {
	if l.open {
		return
	}
	l.open = true
	h := l.Header()
	maps.Copy(h, l.kept)
	// Another content type means that a handler has replaced the answer, or
	// wants just that.
	if v := h["Content-Type"]; l.hides && len(v) == 1 && v[0] == TypeSealed {
		h["Content-Type"] = l.contentType
	}
	if *l.slot == http.ResponseWriter(l) {
		*l.slot = l.ResponseWriter
	}
}

// lastSlot returns where the writer next to the server is held by the one
// around it, or nil if w is the server's own, or no wrapper can be opened.
func lastSlot(w http.ResponseWriter) *http.ResponseWriter {
	var last *http.ResponseWriter
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return last
		}
		below := wrapper.Unwrap()
		//nolint:bodyclose // a writer of responses, not a response
		if slot := slotOf(w); slot != nil && below != nil && reflect.TypeOf(below).Comparable() && *slot == below {
			last = slot
		}
		w = below
	}
}

// slotOf returns where a wrapper holds the writer below it. The wrappers of
// Caddy embed its ResponseWriterWrapper, most of them in types that are not
// exported; the field itself is.
func slotOf(w http.ResponseWriter) *http.ResponseWriter {
	if l, ok := w.(*caddyhttp.ResponseWriterWrapper); ok {
		return &l.ResponseWriter
	}
	v := reflect.ValueOf(w)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	v = v.Elem()
	for _, name := range []string{"ResponseWriterWrapper", "ResponseWriter"} {
		field := v.FieldByName(name)
		if !field.IsValid() || !field.CanAddr() || !field.Addr().CanInterface() {
			continue
		}
		switch f := field.Addr().Interface().(type) {
		case *caddyhttp.ResponseWriterWrapper:
			return &f.ResponseWriter
		case **caddyhttp.ResponseWriterWrapper:
			if *f != nil {
				return &(*f).ResponseWriter
			}
		case *http.ResponseWriter:
			return f
		}
	}
	return nil
}
