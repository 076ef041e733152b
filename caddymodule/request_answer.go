package caddymodule

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/munnerz/goautoneg"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// The codes of the answers that Usher gives itself, which are also values of
// the label `outcome`.
const (
	codeQueueFull           = "queue_full"
	codeWaitTimeout         = "wait_timeout"
	codeStartFailed         = "start_failed"
	codeAsleep              = "asleep"
	codeSuspended           = "suspended"
	codePlatformUnavailable = "platform_unavailable"
	codeShuttingDown        = "shutting_down"

	// No error: the browser waits instead of the request.
	codeWaitingPage = "waiting_page"

	outcomeClientGone = "client_gone"
)

var titles = map[string]string{
	codeQueueFull:           "Too many requests are waiting for the service",
	codeWaitTimeout:         "The service was not free in time",
	codeStartFailed:         "The service cannot be started",
	codeAsleep:              "The service is asleep",
	codeSuspended:           "The service is suspended",
	codePlatformUnavailable: "The platform that runs the service cannot be reached",
	codeShuttingDown:        "The server is shutting down",
	codeInstanceEnded:       "The service ended before it answered",
}

var refusalCodes = map[control.RefusalKind]string{
	control.RefusedFailing:   codeStartFailed,
	control.RefusedPlatform:  codePlatformUnavailable,
	control.RefusedSuspended: codeSuspended,
	control.RefusedExiting:   codeShuttingDown,
}

// explanation is what a client is told that Usher itself answers.
type explanation struct {
	status                   int // 0 for 503
	code, detail, fullDetail string
	title                    string // "" for that of the code
	retryAfter               int    // seconds
	unready                  bool   // not held, while no instance is ready
	attempted                bool   // starts were tried, and failed each time
}

// titleNotHeld and titleNotReady are titles of queue_full where no request is
// held.
const (
	titleNotHeld  = "The service is busy, and holds no requests"
	titleNotReady = "The service is starting, and holds no requests"
)

// When to ask again where it is not known when that may be worth it: clients
// that obey ask so often, for as long as it takes.
const (
	retrySuspended = time.Minute
	retryAsleep    = 30 * time.Second
	retryUnknown   = 10 * time.Second
)

// forecast says when a request like q could have a slot.
func (q *request) forecast() time.Duration {
	held := hub.DefaultWaitTimeout
	if q.handler != nil {
		held = time.Duration(q.handler.WaitTimeout)
	}
	return q.service.Forecast(q.asks(), held)
}

// explainFull says why no request may wait.
func (q *request) explainFull(why *explanation) {
	why.code, why.detail = codeQueueFull, "the queue is full"
	if q.turn != nil && q.turn.ask.ShareLimit > 0 {
		why.detail = "the queue is full, or too many requests of the same client are in it"
	}
	if q.service.HoldsNone() {
		why.title, why.detail = titleNotHeld, "all slots are in use, and max_waiting is 0: no request waits for one"
		if why.unready = q.service.Reserver.Stats().Open == 0; why.unready {
			why.title, why.detail = titleNotReady, "no instance is ready, and max_waiting is 0: no request waits for one"
		} else if q.turn != nil && q.turn.ask.Affinity != reserver.NoAffinity {
			why.detail = "all slots that this request may use are in use, and max_waiting is 0: no request waits for one"
		}
	}
}

// explain finds the code and the words for the reason of a refusal, and when
// it may be worth to ask again.
func (q *request) explain(reason error) {
	why := &explanation{retryAfter: 1}
	q.why = why
	var wait time.Duration
	if r, ok := errors.AsType[*control.Refusal](reason); ok {
		why.code = refusalCodes[r.Kind]
		why.detail, why.fullDetail = r.Short, r.Detail
		why.attempted = r.Kind == control.RefusedFailing
		wait = retryUnknown
		if !r.Until.IsZero() {
			wait = time.Until(r.Until)
		}
		switch r.Kind {
		case control.RefusedSuspended:
			wait = retrySuspended
		case control.RefusedExiting:
			wait = 0 // another Caddy takes over, or this one is back in a moment
		}
		if q.quiet && (r.Kind == control.RefusedFailing || r.Kind == control.RefusedPlatform) {
			// Whether it could be woken is no matter of this request.
			reason = reserver.ErrAsleep
		}
	}
	switch {
	case errors.Is(reason, reserver.ErrQueueFull):
		q.explainFull(why)
		wait = q.forecast()
	case errors.Is(reason, errWaitTimeout):
		why.code, why.detail = codeWaitTimeout, "held for "+q.waited.Round(time.Millisecond).String()
		if q.turn != nil && q.turn.bound {
			why.detail += ", for the instance of its session"
		} else if !q.service.MayWrite() {
			why.detail += ": this server is cut off from its cluster, and sends no requests until it is back"
		} else if f := q.service.Loop.StartTrouble(); f != nil {
			// No instance was there to be free: the reason is what helps.
			why.code = codeStartFailed
			why.detail, why.fullDetail = why.detail+": "+scaler.Readable(f.Short), why.detail+": "+f.Error()
		}
		wait = q.forecast()
	case errors.Is(reason, errWaitingPage):
		why.code, why.detail = codeWaitingPage, "the browser waits with the waiting page"
		wait = q.forecast()
	case errors.Is(reason, errUploadTooLarge):
		why.code, why.detail = codeQueueFull, errUploadTooLarge.Error()
		wait = q.forecast()
	case errors.Is(reason, reserver.ErrAsleep):
		why.code, why.detail, why.fullDetail = codeAsleep, "no instance is ready, and this request does not wake the service", ""
		wait = retryAsleep
		if since, _ := q.service.Loop.ColdStart(); !since.IsZero() {
			wait = q.forecast() // others have woken it
		}
	}
	if why.fullDetail == "" {
		why.fullDetail = why.detail
	}
	// Rounded up: a client that retries a moment too early is rejected again.
	why.retryAfter = max(1, int((wait+time.Second-1)/time.Second))
}

// refuse answers a request that no instance can have seen.
func (q *request) refuse(reason error) error {
	if errors.Is(reason, errClientGone) {
		q.service.Outcome(outcomeClientGone, q.waited)
		return caddyhttp.Error(statusClientGone, fmt.Errorf("service %s: %w after %v in the queue", q.service.Name, reason, q.waited.Round(time.Millisecond)))
	}
	q.explain(reason)
	q.service.Outcome(q.why.code, q.waited)
	if c := q.service.Log().Check(zap.DebugLevel, "request refused"); c != nil {
		c.Write(zap.String("code", q.why.code), zap.String("detail", q.why.fullDetail), zap.Duration("waited", q.waited))
	}

	// The service's headers are not those of this answer.
	w := answer.Seal(q.writer.ResponseWriter)
	h := w.Header()
	own := q.ownHeaders()
	for name := range own {
		delete(h, name)
	}
	if q.why.code == codeShuttingDown && q.came.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	if q.handler.ServerTiming {
		// One may have been said before the wait for another try.
		h["Server-Timing"] = slices.DeleteFunc(h["Server-Timing"], func(v string) bool { return strings.HasPrefix(v, timingPrefix) })
		h.Add("Server-Timing", q.serverTiming())
	}
	// What error pages commonly show is for clients: the short words.
	err := caddyhttp.Error(http.StatusServiceUnavailable, fmt.Errorf("service %s: %s: %s", q.service.Name, q.why.code, q.why.detail))
	q.restore()
	if q.why.code != codeWaitingPage && q.offer(w, err, own) {
		return nil
	}
	maps.Copy(h, own)
	q.body.giveUp(w)
	defer q.body.linger(w)
	if q.page != nil {
		q.answerPage(w, reason)
		return nil
	}
	q.answer(w)
	return nil
}

// ownHeaders are the headers that every answer of Usher's own has.
func (q *request) ownHeaders() http.Header {
	return http.Header{
		"Retry-After":      {strconv.Itoa(q.why.retryAfter)},
		"Cache-Control":    {"no-store"},
		answer.HeaderError: {q.why.code},
	}
}

// offer offers an error to the server's error routes, with the body of the
// request as it was when it came: a fallback may want it.
func (q *request) offer(w http.ResponseWriter, err caddyhttp.HandlerError, own http.Header) bool {
	shared := q.handler.shared
	if !shared.errors.answered(shared.server, w, q.with(q.came.Context()), err, own) {
		return false
	}
	q.body.linger(w)
	return true
}

// errorRoutes are the server's error routes, compiled when first needed.
type errorRoutes struct {
	once  sync.Once
	chain caddyhttp.Handler
}

// answered offers an error to the server's error routes, and says whether one
// of them has answered it. All sites of a listener have the same routes: one
// that answers for another site, or for another status, answers nothing here.
// The headers in own are for a page that says why the service did not answer.
func (e *errorRoutes) answered(server *caddyhttp.Server, w http.ResponseWriter, r *http.Request, err caddyhttp.HandlerError, own http.Header) bool {
	if server == nil || server.Errors == nil || len(server.Errors.Routes) == 0 {
		return false
	}
	if r.Context().Value(caddyhttp.ErrorCtxKey) != nil {
		// This is an error route, whose service cannot be had either: offered
		// to the error routes once more it would come back here without end.
		return false
	}
	e.once.Do(func() {
		nothing := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
		e.chain = server.Errors.Routes.Compile(nothing)
	})
	r = server.Errors.WithError(r, err)
	before := w.Header().Clone()
	held := &heldStatus{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, own: own}
	held.replacer, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if held.replacer != nil {
		held.replacer.Delete(placeholderAnswered) // of an attempt before
	}
	held.body, _ = r.Body.(*requestBody)
	failed := e.chain.ServeHTTP(held, r) != nil
	if !failed && held.status != 0 && (held.status != err.StatusCode || describesBody(before, w.Header()) || held.proxied()) {
		// A redirect, say: an answer without a body. What Caddy writes where
		// a site has no route for an error is the bare status of the error.
		held.pass()
	}
	if !held.passed {
		// What a route had set belongs to the answer that it did not give.
		clear(w.Header())
		maps.Copy(w.Header(), before)
	}
	return held.passed
}

// describesBody says whether a handler has said something of the body of its
// answer, be it that there is none.
func describesBody(before, after http.Header) bool {
	_, had := before["Content-Type"]
	_, has := after["Content-Type"]
	return has && !had
}

// restore makes the request again what it was when it came: as the server
// does it before its error routes, and in the same place, because
// placeholders read the request that the server has.
func (q *request) restore() {
	orig, ok := q.ctx.Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if !ok {
		return
	}
	r := q.came
	r.Method, r.RemoteAddr, r.RequestURI = orig.Method, orig.RemoteAddr, orig.RequestURI
	*r.URL = *orig.URL
}

// placeholderAnswered is set by `reverse_proxy` once a server has answered.
const placeholderAnswered = "http.reverse_proxy.upstream.latency"

// heldStatus keeps a status back until it is clear that an error route answers
// with it: a body follows, or the route sends the header off, as a proxy does
// for a stream, or takes the connection over.
type heldStatus struct {
	*caddyhttp.ResponseWriterWrapper
	own      http.Header // what an answer gets that tells of Usher's error
	replacer *caddy.Replacer
	status   int
	passed   bool
	body     *requestBody // nil if there is none
}

// WriteHeader implements http.ResponseWriter.
func (h *heldStatus) WriteHeader(status int) {
	if h.passed || answer.Informational(status) {
		h.ResponseWriter.WriteHeader(status)
		return
	}
	if h.status == 0 {
		h.status = status
	}
	if status == http.StatusSwitchingProtocols {
		h.body.upgraded()
		h.pass()
	}
}

// Write implements http.ResponseWriter.
func (h *heldStatus) Write(b []byte) (int, error) {
	if len(b) == 0 && !h.passed {
		return 0, nil
	}
	h.pass()
	return h.ResponseWriter.Write(b)
}

func (h *heldStatus) pass() {
	if h.passed {
		return
	}
	h.passed = true
	if h.status == 0 {
		h.status = http.StatusOK
	}
	h.sign()
	if h.body.unwanted() {
		h.body.giveUp(h.ResponseWriter)
	} else {
		h.body.settle(h.ResponseWriter)
	}
	h.ResponseWriter.WriteHeader(h.status)
}

// sign completes the headers of the route's answer. A page that says why the
// service did not answer is for Usher's error, and says so. An answer that a
// route gives in place of the service is the route's alone: the request may
// have been executed, and need not come again. Like
// the page, it must not be cached as the answer of the service.
func (h *heldStatus) sign() {
	head := h.Header()
	for name, v := range h.own {
		if name != "Cache-Control" && (h.status < http.StatusMultipleChoices || h.proxied()) {
			continue
		}
		if _, ok := head[name]; !ok {
			head[name] = v
		}
	}
}

// proxied says whether a server has answered to which the route has sent the
// request.
func (h *heldStatus) proxied() bool {
	if h.replacer == nil {
		return false
	}
	_, answered := h.replacer.Get(placeholderAnswered)
	return answered
}

// ReadFrom implements io.ReaderFrom.
func (h *heldStatus) ReadFrom(r io.Reader) (int64, error) {
	if h.passed {
		return h.ResponseWriterWrapper.ReadFrom(r)
	}
	// Whether there is a body is only known when some of it comes.
	return io.Copy(struct{ io.Writer }{h}, r)
}

// FlushError implements the flushing of http.ResponseController.
func (h *heldStatus) FlushError() error {
	h.pass()
	return http.NewResponseController(h.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker.
func (h *heldStatus) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err == nil {
		h.passed = true
		h.body.upgraded()
	}
	return conn, rw, err
}

// problem is the body for programs, by RFC 9457.
type problem struct {
	Title      string `json:"title"`
	Status     int    `json:"status"`
	Detail     string `json:"detail"`
	Code       string `json:"code"`
	Service    string `json:"service,omitempty"`
	RetryAfter int    `json:"retry_after,omitempty"`
	WaitedMS   int64  `json:"waited_ms"`
}

// hint is the code, and when to try again if that is known to be safe.
func (p problem) hint() string {
	if p.RetryAfter == 0 {
		return p.Code
	}
	return fmt.Sprintf("%s; try again in %d s", p.Code, p.RetryAfter)
}

var page = template.Must(template.New("error").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto 0;padding:0 1rem}p{opacity:.8}</style>
</head><body><h1>{{.Title}}</h1><p>{{.Detail}}</p><p>{{if .RetryAfter}}Try again in {{.RetryAfter}} s. {{end}}<small>{{with .Service}}{{.}}: {{end}}{{.Code}}</small></p></body></html>
`))

// answer writes Usher's own answer, in the form that the client prefers.
func (q *request) answer(w http.ResponseWriter) {
	p := problem{
		Title: cmp.Or(q.why.title, titles[q.why.code]), Status: cmp.Or(q.why.status, http.StatusServiceUnavailable), Detail: q.why.detail, Code: q.why.code,
		Service: q.service.Name, RetryAfter: q.why.retryAfter, WaitedMS: q.waited.Milliseconds(),
	}
	if q.service.Live.Load().DetailFull {
		p.Detail = q.why.fullDetail
	}
	writeProblem(w, q.came, p)
}

// writeProblem writes p in the form that the client of r prefers.
func writeProblem(w http.ResponseWriter, r *http.Request, p problem) {
	if contentType := grpcType(r.Header); contentType != "" {
		answerGRPC(w, contentType, p)
		return
	}
	form := answer.TypeProblem
	if accept := answer.Preferences(r.Header, "Accept"); accept != "" {
		if n := goautoneg.Negotiate(accept, []string{answer.TypeProblem, answer.TypeJSON, answer.TypeHTML, answer.TypePlain}); n != "" {
			form = n
		}
	}
	h := w.Header()
	h.Add("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	switch form {
	case answer.TypeHTML:
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	case answer.TypePlain:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = fmt.Appendf(nil, "%s: %s (%s)\n", p.Title, answer.ForeignLine(p.Detail), p.hint())
	default:
		h.Set("Content-Type", answer.TypeProblem)
		body, _ = json.Marshal(p)
		body = append(answer.ForeignJSON(body), '\n')
	}
	if form == answer.TypeHTML {
		var b bytes.Buffer
		_ = page.Execute(&b, struct {
			problem
			Detail template.HTML
		}{p, answer.ForeignHTML(p.Detail)})
		body = b.Bytes()
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}
