package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/munnerz/goautoneg"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
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

	outcomeGranted    = "granted"
	outcomeClientGone = "client_gone"
)

// headerError carries the code.
const headerError = "Usher-Error"

var titles = map[string]string{
	codeQueueFull:           "Too many requests are waiting for the service",
	codeWaitTimeout:         "The service was not free in time",
	codeStartFailed:         "The service cannot be started",
	codeAsleep:              "The service is asleep",
	codeSuspended:           "The service is suspended",
	codePlatformUnavailable: "The platform that runs the service cannot be reached",
	codeShuttingDown:        "The server is shutting down",
}

var refusalCodes = map[scaler.RefusalKind]string{
	scaler.RefusedFailing:   codeStartFailed,
	scaler.RefusedPlatform:  codePlatformUnavailable,
	scaler.RefusedSuspended: codeSuspended,
	scaler.RefusedExiting:   codeShuttingDown,
}

// explanation is what a client is told that Usher itself answers.
type explanation struct {
	code, detail, fullDetail string
	retryAfter               int // seconds
}

// explain finds the code and the words for the reason of a refusal, and when
// it may be worth to ask again.
func (q *request) explain(reason error) {
	why := &explanation{retryAfter: 1}
	q.why = why
	var wait time.Duration
	if r, ok := errors.AsType[*scaler.Refusal](reason); ok {
		why.code = refusalCodes[r.Kind]
		why.detail, why.fullDetail = r.Short, r.Detail
		wait = time.Until(r.Until)
		if q.quiet && (r.Kind == scaler.RefusedFailing || r.Kind == scaler.RefusedPlatform) {
			// Whether it could be woken is no matter of this request.
			reason = reserver.ErrAsleep
		}
	}
	switch {
	case errors.Is(reason, reserver.ErrQueueFull):
		why.code, why.detail = codeQueueFull, "the waiting line is full"
		wait = q.service.forecast()
	case errors.Is(reason, errWaitTimeout):
		why.code, why.detail = codeWaitTimeout, "held for "+q.waited.Round(time.Millisecond).String()
		wait = q.service.forecast()
	case errors.Is(reason, errWaitingPage):
		why.code, why.detail = codeWaitingPage, "the browser waits with the waiting page"
		wait = q.service.forecast()
	case errors.Is(reason, reserver.ErrAsleep):
		why.code, why.detail, why.fullDetail = codeAsleep, "no instance is ready, and this request does not wake the service", ""
	}
	if why.fullDetail == "" {
		why.fullDetail = why.detail
	}
	// Rounded up: who comes a moment too early is refused once more.
	why.retryAfter = max(1, int((wait+time.Second-1)/time.Second))
}

// refuse answers a request that no instance can have seen.
func (q *request) refuse(reason error) error {
	if errors.Is(reason, errClientGone) {
		q.service.outcome(outcomeClientGone, q.waited)
		return caddyhttp.Error(statusClientGone, fmt.Errorf("service %s: %w after %v in the line", q.service.name, reason, q.waited.Round(time.Millisecond)))
	}
	q.explain(reason)
	q.service.outcome(q.why.code, q.waited)
	if c := q.service.log().Check(zap.DebugLevel, "request refused"); c != nil {
		c.Write(zap.String("code", q.why.code), zap.String("detail", q.why.fullDetail), zap.Duration("waited", q.waited))
	}

	w := q.writer.ResponseWriter
	q.body.abandon(w)
	h := w.Header()
	h.Set("Retry-After", strconv.Itoa(q.why.retryAfter))
	h.Set("Cache-Control", "no-store")
	h.Set(headerError, q.why.code)
	if q.why.code == codeShuttingDown && q.came.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	if q.handler.ServerTiming {
		// One may have been said before the wait for another try.
		h["Server-Timing"] = slices.DeleteFunc(h["Server-Timing"], func(v string) bool { return strings.HasPrefix(v, timingPrefix) })
		h.Add("Server-Timing", q.serverTiming())
	}
	// What error pages commonly show is for clients: the short words.
	err := caddyhttp.Error(http.StatusServiceUnavailable, fmt.Errorf("service %s: %s: %s", q.service.name, q.why.code, q.why.detail))
	q.restore()
	if q.why.code != codeWaitingPage && q.handler.place.errors.answered(q.handler.place.server, w, q.with(q.ctx), err) {
		return nil
	}
	if q.page != nil {
		q.answerPage(w, reason)
		return nil
	}
	q.answer(w)
	return nil
}

// errorRoutes are the server's error routes, compiled when first needed.
type errorRoutes struct {
	once  sync.Once
	chain caddyhttp.Handler
}

// answered offers an error to the server's error routes, and says whether one
// of them has answered it. All sites of a listener have the same routes: one
// that answers for another site, or for another status, answers nothing here.
func (e *errorRoutes) answered(server *caddyhttp.Server, w http.ResponseWriter, r *http.Request, err caddyhttp.HandlerError) bool {
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
	held := &heldStatus{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	failed := e.chain.ServeHTTP(held, r) != nil
	if !failed && held.status != 0 && (held.status != err.StatusCode || describesBody(before, w.Header())) {
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

// heldStatus keeps a status back until a body follows.
type heldStatus struct {
	*caddyhttp.ResponseWriterWrapper
	status int
	passed bool
}

// WriteHeader implements http.ResponseWriter.
func (h *heldStatus) WriteHeader(status int) {
	if h.passed || status < 200 {
		h.ResponseWriter.WriteHeader(status)
		return
	}
	if h.status == 0 {
		h.status = status
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
	h.ResponseWriter.WriteHeader(h.status)
}

// FlushError implements the flushing of http.ResponseController.
func (h *heldStatus) FlushError() error {
	if !h.passed {
		return nil
	}
	return http.NewResponseController(h.ResponseWriter).Flush()
}

const (
	typeProblem = "application/problem+json"
	typeJSON    = "application/json"
	typeHTML    = "text/html"
	typePlain   = "text/plain"
)

// problem is the body for programs, by RFC 9457.
type problem struct {
	Title      string `json:"title"`
	Status     int    `json:"status"`
	Detail     string `json:"detail"`
	Code       string `json:"code"`
	Service    string `json:"service"`
	RetryAfter int    `json:"retry_after"`
	WaitedMS   int64  `json:"waited_ms"`
}

var page = template.Must(template.New("error").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto 0;padding:0 1rem}p{opacity:.8}</style>
</head><body><h1>{{.Title}}</h1><p>{{.Detail}}</p><p>Try again in {{.RetryAfter}} s. <small>{{.Service}}: {{.Code}}</small></p></body></html>
`))

// oneLine puts what an instance or a platform wrote on several lines on one:
// none of them can pass for an answer of its own.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' }), "; ")
}

// answer writes Usher's own answer, in the form that the client prefers.
func (q *request) answer(w http.ResponseWriter) {
	p := problem{
		Title: titles[q.why.code], Status: http.StatusServiceUnavailable, Detail: q.why.detail, Code: q.why.code,
		Service: q.service.name, RetryAfter: q.why.retryAfter, WaitedMS: q.waited.Milliseconds(),
	}
	if q.service.live.Load().detailFull {
		p.Detail = q.why.fullDetail
	}
	form := typeProblem
	if accept := strings.Join(q.came.Header.Values("Accept"), ","); accept != "" {
		if n := goautoneg.Negotiate(accept, []string{typeProblem, typeJSON, typeHTML, typePlain}); n != "" {
			form = n
		}
	}
	h := w.Header()
	h.Add("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	switch form {
	case typeHTML:
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	case typePlain:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = fmt.Appendf(nil, "%s: %s (%s; try again in %d s)\n", p.Title, oneLine(p.Detail), p.Code, p.RetryAfter)
	default:
		h.Set("Content-Type", typeProblem)
		body, _ = json.Marshal(p)
		body = append(body, '\n')
	}
	w.WriteHeader(p.Status)
	if q.came.Method == http.MethodHead {
		return
	}
	if form == typeHTML {
		_ = page.Execute(w, p)
		return
	}
	_, _ = w.Write(body)
}
