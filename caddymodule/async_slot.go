package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/reserver"
)

// taskRisesAfter is after how long a task that waits rises by a class, so that a
// service that is always busy executes tasks, too.
const taskRisesAfter = 5 * time.Minute

// taskSlot is the slot of a task. It is that of a request, which is sent through the
// proxy of the handler, as often as the task asks for.
type taskSlot struct {
	request request
	sent    bool
	outcome reserver.Outcome // of what was sent last
	sending sync.WaitGroup
	end     context.CancelFunc // of what is being sent; nil before
}

// errPinned ends a further attempt of what asks one instance about its work.
var errPinned = errors.New("the instance that has the task cannot be reached")

// Slot implements hub.TaskPlace. A task waits as a visitor: it has a place in the
// queue and is demand, and it takes no place from requests. When its turn comes it
// asks for the slot.
func (h *Handler) Slot(ctx context.Context) (async.Slot, error) {
	s := &taskSlot{request: request{handler: h, service: h.service}}
	q := &s.request
	q.reservation.Interrupter = q
	ask := reserver.Ask{Class: reserver.Low, RiseAfter: taskRisesAfter}
	var v reserver.Visitor
	h.service.TaskWaits(1)
	defer h.service.TaskWaits(-1)
	if err := h.service.Reserver.Visit(&v, ask); err != nil {
		return nil, err
	}
	select {
	case <-v.Turn():
		if err := v.Reason(); err != nil {
			return nil, err
		}
	case <-ctx.Done():
		v.Leave()
		return nil, ctx.Err()
	}
	ok, err := v.Reserve(&q.reservation, ask)
	if err != nil {
		return nil, err
	}
	if ok {
		return s, nil
	}
	select {
	case err = <-q.reservation.Granted():
	case <-ctx.Done():
		err = ctx.Err()
		if q.reservation.Cancel() {
			q.reservation.Release(reserver.Neutral)
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Send implements async.Slot.
func (s *taskSlot) Send(r *http.Request) (*http.Response, error) {
	q := &s.request
	if q.reservation.Instance() == nil {
		return nil, &async.NotSentError{Err: errors.New("the task has lost its slot")}
	}
	s.stop()
	ctx, cancel := context.WithCancel(r.Context())
	s.end = cancel
	w := newTaskWriter(cancel)
	r = r.WithContext(ctx)
	r.RequestURI = r.URL.RequestURI()
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, q.handler.shared.server)
	q.refusal, q.seen, q.moves, q.why = nil, 0, 0, nil
	q.writer, q.body = responseWriter{request: q}, nil
	q.take(w, r)
	if q.body != nil {
		q.body.duplex = false // there is no connection of a client
	}
	q.pinned = s.sent
	q.seated()
	s.sent = true
	s.sending.Go(func() { w.finish(s.serve()) })
	select {
	case <-w.began:
		return w.response(), nil
	case <-w.ended:
	}
	select {
	case <-w.began:
		return w.response(), nil
	default:
	}
	err := w.err
	if err == nil {
		err = errors.New("the proxy did not answer")
	}
	if q.seen == 0 && !q.maybeSeen() {
		return nil, &async.NotSentError{Err: err}
	}
	return nil, err
}

// serve lets the proxy send the request. It returns why there is no whole answer.
func (s *taskSlot) serve() (err error) {
	q := &s.request
	defer func() {
		if p := recover(); p != nil {
			// So the proxy says that an answer was cut off.
			err = io.ErrUnexpectedEOF
			if p != http.ErrAbortHandler { //nolint:errorlint // it is the value itself
				err = fmt.Errorf("the proxy has failed: %v", p)
			}
		}
		s.outcome = q.outcome()
		q.body.end(q.writer.ResponseWriter)
	}()
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	err = q.handler.Proxy.ServeHTTP(&q.writer, q.forwarded(), next)
	q.writer.dropTrailers()
	if shown, ok := errors.AsType[caddyhttp.HandlerError](err); ok && shown.Err != nil {
		// Clients read it as the reason: without the words that are for Caddy's log.
		err = fmt.Errorf("the request to the instance failed: %w", shown.Err)
	}
	if gone := q.interrupted(); gone != nil && (err != nil || q.writer.suppressed) {
		return gone
	}
	if q.refusal != nil && err != nil {
		return fmt.Errorf("%w (%w)", q.refusal, err)
	}
	return err
}

// stop ends what is being sent, and waits for that.
func (s *taskSlot) stop() {
	if s.end != nil {
		s.end()
		s.sending.Wait()
	}
}

// Release implements async.Slot.
func (s *taskSlot) Release() {
	q := &s.request
	s.stop()
	q.reservation.Release(s.outcome)
	if a := q.attempt.Load(); a != nil {
		a.cancel(nil)
	}
	q.endPin()
}

// taskWriter makes an http.Response of what a handler writes.
type taskWriter struct {
	header http.Header
	status int
	sent   http.Header   // as it was when the final header was written
	began  chan struct{} // closed when it was
	ended  chan struct{} // closed when the handler has returned
	err    error         // why it has; before ended is closed
	reader *io.PipeReader
	writer *io.PipeWriter
	cancel context.CancelFunc
}

func newTaskWriter(cancel context.CancelFunc) *taskWriter {
	w := &taskWriter{header: make(http.Header), began: make(chan struct{}), ended: make(chan struct{}), cancel: cancel}
	w.reader, w.writer = io.Pipe()
	return w
}

// Header implements http.ResponseWriter.
func (w *taskWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *taskWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return // what comes before the answer is told by the trace of the request
	}
	w.status, w.sent = status, w.header.Clone()
	close(w.began)
}

// Write implements http.ResponseWriter.
func (w *taskWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.writer.Write(b)
}

// Flush implements http.Flusher: everything is passed on at once.
func (w *taskWriter) Flush() {}

// finish ends the answer, with the reason if it is not whole.
func (w *taskWriter) finish(err error) {
	w.err = err
	_ = w.writer.CloseWithError(err) // it never fails
	close(w.ended)
}

func (w *taskWriter) response() *http.Response {
	return &http.Response{StatusCode: w.status, Header: w.sent, Body: &taskBody{w.reader, w.cancel}, ContentLength: -1}
}

// taskBody is the body of an answer. Closing it ends the request.
type taskBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (b *taskBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
