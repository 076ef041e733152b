package async

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"time"
)

// The headers by which an instance knows a task.
const (
	HeaderTask     = "Usher-Task"
	HeaderAttempt  = "Usher-Task-Attempt"
	HeaderProgress = "Usher-Progress"
	headerKey      = "Idempotency-Key"
)

// How an instance is asked that has answered 202 with a Location.
const (
	pollFrom = time.Second
	pollTo   = 10 * time.Second

	// withdrawTimeout bounds the DELETE of what is not wanted any more.
	withdrawTimeout = 5 * time.Second
)

// run is one attempt.
type run struct {
	dispatcher *Dispatcher
	task       Task
	policy     *Policy
	slot       Slot
	body       io.Closer // of the request; nil before it is there
	monitor    *url.URL  // where the instance is asked, after a 202; nil without
	progressed time.Time
}

// close closes the body of the request, when the attempt has ended. Before, an instance
// may still read it, also if it has begun to answer.
func (r *run) close() {
	if r.body != nil {
		_ = r.body.Close()
	}
}

// why returns why an attempt has ended that did so with err.
func (r *run) why(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	cause := context.Cause(ctx)
	if r.monitor != nil && errors.Is(cause, errCancelled) {
		r.withdraw()
	}
	return cause
}

// send sends the request of the task and returns the answer. The caller closes its
// body.
func (r *run) send(ctx context.Context) (*Answer, error) {
	body, err := r.dispatcher.store.Body(ctx, r.task.ID)
	if err != nil {
		return nil, &NotSentError{err}
	}
	r.body = body
	req, err := r.request(ctx, body)
	if err != nil {
		return nil, err
	}
	if !r.dispatcher.leased() {
		return nil, &NotSentError{errLost}
	}
	resp, err := r.slot.Send(req) //nolint:bodyclose // the caller closes it, as part of the answer
	if err != nil {
		return nil, err
	}
	resp, err = r.follow(ctx, resp) //nolint:bodyclose // as above
	if err != nil {
		return nil, err
	}
	return r.answer(resp), nil
}

func (r *run) request(ctx context.Context, body io.ReadCloser) (*http.Request, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: r.informed})
	t := r.task.Request
	req, err := http.NewRequestWithContext(ctx, t.Method, t.URI, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = r.task.BodySize
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	if t.Header != nil {
		req.Header = t.Header.Clone()
	}
	if t.Host != "" {
		req.Host = t.Host
	}
	if r.task.Key != "" && req.Header.Get(headerKey) == "" {
		req.Header.Set(headerKey, r.task.Key)
	}
	r.origin(req)
	r.mark(req)
	return req, nil
}

// origin tells where the request came from.
func (r *run) origin(req *http.Request) {
	req.RemoteAddr = r.task.Request.Remote
	if r.task.Request.Secure {
		req.TLS = new(tls.ConnectionState)
	}
}

// mark tells the instance which task it executes.
func (r *run) mark(req *http.Request) {
	req.Header.Set(HeaderTask, r.task.ID)
	req.Header.Set(HeaderAttempt, strconv.Itoa(r.task.Attempt))
}

// informed notes the progress that an instance tells.
func (r *run) informed(_ int, h textproto.MIMEHeader) error {
	r.progress(http.Header(h))
	return nil
}

// progress notes what a response tells of the progress, not more often than once in a
// second.
func (r *run) progress(h http.Header) {
	percent, err := strconv.Atoi(h.Get(HeaderProgress))
	if err != nil || percent < 0 || percent > 100 || !r.progressed.IsZero() && time.Since(r.progressed) < time.Second {
		return
	}
	r.progressed = time.Now()
	// It is told for people. If it is not stored, nothing is lost.
	_ = r.dispatcher.store.Progress(context.Background(), r.task.ID, r.task.Attempt, percent)
}

// follow asks the instance until it has the result, if it has answered 202 with a
// Location that is its own. A status of 200 or 202 says that it is not ready, and 302
// or 303 where the result is. Everything else is the answer.
func (r *run) follow(ctx context.Context, resp *http.Response) (*http.Response, error) {
	if resp.StatusCode != http.StatusAccepted {
		return resp, nil
	}
	base, err := url.Parse(r.task.Request.URI)
	if err != nil {
		return resp, nil
	}
	at := r.own(base, resp)
	if at == nil {
		return resp, nil
	}
	r.monitor = at
	pause := pollFrom
	for {
		r.progress(resp.Header)
		wait := pause
		if told := retryAfter(resp.Header); told > 0 {
			wait = min(told, pollTo)
		}
		pause = min(pause*2, pollTo)
		drop(resp)
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		if resp, err = r.get(ctx, at); err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusOK, http.StatusAccepted:
		case http.StatusFound, http.StatusSeeOther:
			result := r.own(at, resp)
			if result == nil {
				return resp, nil // elsewhere: the client may go there
			}
			drop(resp)
			return r.get(ctx, result)
		default:
			return resp, nil
		}
	}
}

// own returns where a Location leads, if that is at the instance.
func (r *run) own(base *url.URL, resp *http.Response) *url.URL {
	location := resp.Header.Get("Location")
	if location == "" {
		return nil
	}
	at, err := base.Parse(location)
	if err != nil || at.Host != "" && at.Host != r.task.Request.Host && at.Host != base.Host {
		return nil
	}
	return &url.URL{Path: at.Path, RawPath: at.RawPath, RawQuery: at.RawQuery}
}

func (r *run) get(ctx context.Context, at *url.URL) (*http.Response, error) {
	return r.ask(ctx, http.MethodGet, at)
}

func (r *run) ask(ctx context.Context, method string, at *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, at.RequestURI(), http.NoBody)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Authorization", "Cookie", "Accept"} {
		if v := r.task.Request.Header.Values(name); len(v) > 0 {
			req.Header[name] = v
		}
	}
	req.Host = r.task.Request.Host
	r.origin(req)
	r.mark(req)
	return r.slot.Send(req)
}

// withdraw tells the instance that the result is not wanted any more.
func (r *run) withdraw() {
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTimeout)
	defer cancel()
	if resp, err := r.ask(ctx, http.MethodDelete, r.monitor); err == nil {
		drop(resp)
	}
}

// What is read of a body that is not wanted, and how long that may take.
const (
	restMost    = 4 << 10
	restTimeout = time.Second
)

// drop closes a response whose body is not wanted.
func drop(resp *http.Response) {
	readRest(resp.Body)
	_ = resp.Body.Close()
}

// readRest reads a body that is not wanted to its end if it is short, so its connection
// can be used again, and nothing looks as if it was cut off. A slow one is closed.
func readRest(body io.ReadCloser) {
	late := time.AfterFunc(restTimeout, func() { _ = body.Close() })
	defer late.Stop()
	_, _ = io.CopyN(io.Discard, body, restMost+1)
}

// sleep waits, or returns why ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	pause(ctx, d)
	return context.Cause(ctx)
}

// notKept are headers of a response that belong to its connection.
var notKept = []string{
	"Connection", "Content-Length", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// answer is a response as it is kept.
func (r *run) answer(resp *http.Response) *Answer {
	h := resp.Header.Clone()
	for _, name := range notKept {
		h.Del(name)
	}
	size := resp.ContentLength
	return &Answer{Status: resp.StatusCode, Header: h, Size: size, Body: &bounded{resp.Body, r.policy.MaxResult}}
}

// bounded is a body that ends with an error if it is too large.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}
