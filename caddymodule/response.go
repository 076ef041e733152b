package caddymodule

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/scaler"
)

// responseWriter is between the next handlers and the client: an instance
// does not speak for Usher.
type responseWriter struct {
	caddyhttp.ResponseWriterWrapper
	request    *request
	wrote      bool
	suppressed bool // a status that says that the client left was kept back
}

// statusClientGone is what the proxy writes for a client that has left.
const statusClientGone = 499

// WriteHeader implements http.ResponseWriter.
func (w *responseWriter) WriteHeader(status int) {
	if status == statusClientGone && !w.wrote && errors.Is(context.Cause(w.request.ctx), scaler.ErrGone) {
		// It is the instance that has left. The client is told so.
		w.suppressed = true
		return
	}
	delete(w.Header(), headerError) // Del would look at every letter of it first
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.wrote = true
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

// implicit is what net/http does where a handler gives no status.
func (w *responseWriter) implicit() {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
}
