package caddymodule

import (
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/answer"
)

// responseWriter is between the next handlers and the client: an instance
// does not speak for Usher.
type responseWriter struct {
	caddyhttp.ResponseWriterWrapper
	request    *request
	wrote      bool
	status     uint16 // of the final header; 0 before
	streams    bool   // what is known of it to last as long as the client likes
	suppressed bool   // a status that says that the client left was kept back
}

// statusClientGone is what the proxy writes for a client that has left.
const statusClientGone = 499

// WriteHeader implements http.ResponseWriter.
func (w *responseWriter) WriteHeader(status int) {
	if status == statusClientGone && !w.wrote && w.request.interrupted() != nil {
		// It is the instance that has left. The client is told so.
		w.suppressed = true
		return
	}
	h := w.Header()
	delete(h, answer.HeaderError) // Del would look at every letter of it first
	if announced, ok := h["Trailer"]; ok {
		h["Trailer"] = withoutToken(announced, answer.HeaderError)
	}
	if w.request.turn != nil && w.request.turn.sessions != nil && (status >= 200 || status == http.StatusSwitchingProtocols) && !w.wrote {
		w.request.bindSession(h)
	}
	switch {
	case status >= 200:
		w.wrote, w.status = true, uint16(status)
		w.streams = !w.request.granted.IsZero() && (w.request.came.Method == http.MethodConnect || isEventStream(h))
		w.request.body.settle(w.ResponseWriter)
	case status == http.StatusSwitchingProtocols:
		w.wrote, w.status, w.streams = true, uint16(status), true
		w.request.body.upgraded()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *responseWriter) Write(b []byte) (int, error) {
	w.implicit()
	return w.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom.
func (w *responseWriter) ReadFrom(r io.Reader) (int64, error) {
	w.implicit()
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError implements the flushing of http.ResponseController.
func (w *responseWriter) FlushError() error {
	w.implicit()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// dropTrailers removes what an instance said in Usher's name after its body.
func (w *responseWriter) dropTrailers() {
	h := w.Header()
	delete(h, answer.HeaderError)
	delete(h, http.TrailerPrefix+answer.HeaderError)
}

// isEventStream says whether an answer is a stream of events.
func isEventStream(h http.Header) bool {
	t := h["Content-Type"]
	return len(t) > 0 && strings.HasPrefix(t[0], "text/event-stream")
}

// withoutToken removes a name from a header that lists names.
func withoutToken(list []string, name string) []string {
	var left []string
	for _, line := range list {
		for token := range strings.SplitSeq(line, ",") {
			if token = strings.TrimSpace(token); token != "" && !strings.EqualFold(token, name) {
				left = append(left, token)
			}
		}
	}
	if left == nil {
		return nil
	}
	return []string{strings.Join(left, ", ")}
}

// implicit is what net/http does where a handler gives no status.
func (w *responseWriter) implicit() {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
}
