package liveview

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/munnerz/goautoneg"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

func init() {
	caddy.RegisterModule(Status{})
}

// Status answers with the live view: a page that shows all services of this
// Caddy, with their instances, lines and latest decisions, as they change. It
// answers every request that it gets, and checks no identity: guard its
// route with `basic_auth`, `forward_auth` or the like.
//
// The page, what it needs, and its events are told apart by the query, so the
// route can be any path. With `Accept: application/json`, or `?format=json`,
// the answer is JSON; `&service=<name>` asks for one service.
type Status struct {
	// Whether services can be woken, put to sleep, suspended and resumed
	// from the page. Requests from other sites are refused. Default: false.
	Control bool `json:"control,omitempty"`

	// The title of the page. Default: `Usher`.
	Title string `json:"title,omitempty"`

	// Whether the page leaves out what the instances write. Who sees the page
	// can read it otherwise. The reason of a failed start has its last lines
	// in any case. Default: false.
	HideOutput bool `json:"hide_output,omitempty"`

	// How many pages may be open at a time. Default: 50.
	MaxStreams int `json:"max_streams,omitempty"`

	hub     *hub.Hub
	page    []byte
	logger  *zap.Logger
	guard   *http.CrossOriginProtection
	streams *atomic.Int64 // that are open
	end     chan struct{}
	ended   func()
}

const (
	defaultStatusTitle = "Usher"
	defaultMaxStreams  = 50
)

// CaddyModule returns the Caddy module information.
func (Status) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.usher_status",
		New: func() caddy.Module { return new(Status) },
	}
}

// Provision sets up the handler. It touches nothing that runs.
func (h *Status) Provision(ctx caddy.Context) error {
	appAny, err := ctx.App("usher")
	if err != nil {
		return err
	}
	h.hub = appAny.(hub.Holder).Hub()
	h.logger = ctx.Logger()
	h.guard = http.NewCrossOriginProtection()
	if h.Title == "" {
		h.Title = defaultStatusTitle
	}
	if h.MaxStreams < 0 {
		return fmt.Errorf("max_streams must be at least 1, not %d", h.MaxStreams)
	}
	if h.MaxStreams > hub.MaxStreamsBound {
		return fmt.Errorf("max_streams is %d, but can be at most %d", h.MaxStreams, hub.MaxStreamsBound)
	}
	if h.MaxStreams == 0 {
		h.MaxStreams = defaultMaxStreams
	}
	if h.page, err = renderStatusPage(h.Title, h.Control, !h.HideOutput); err != nil {
		return err
	}
	h.streams = new(atomic.Int64)
	h.end = make(chan struct{})
	h.ended = sync.OnceFunc(func() { close(h.end) })
	if server, ok := ctx.Context.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		// A stream that went on would keep the server of an old
		// configuration, or Caddy's exit, for as long as the page is open.
		server.RegisterOnShutdown(h.ended)
	}
	return nil
}

// Cleanup ends the streams.
func (h *Status) Cleanup() error {
	if h.ended != nil {
		h.ended()
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Status) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	q := r.URL.Query()
	w = answer.SealShown(w)
	head := w.Header()
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Referrer-Policy", "no-referrer")
	head.Add("Vary", "Accept")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		return h.operate(w, r, q)
	default:
		head.Set("Allow", "GET, HEAD, POST")
		return caddyhttp.Error(http.StatusMethodNotAllowed, fmt.Errorf("the live view is not answered to %s", r.Method))
	}
	switch {
	case q.Has("asset"):
		return serveStatusAsset(w, r, q.Get("asset"))
	case q.Has("stream"):
		return h.stream(w, r)
	case q.Has("output"):
		return h.serveOutput(w, r, q.Get("service"))
	case q.Get("format") == "json", prefersJSON(r):
		return h.serveJSON(w, r, q.Get("service"))
	}
	servePage(w, h.page)
	return nil
}

// prefersJSON says whether the client would rather have JSON than a page.
func prefersJSON(r *http.Request) bool {
	accept := answer.Preferences(r.Header, "Accept")
	return accept != "" && goautoneg.Negotiate(accept, []string{answer.TypeHTML, answer.TypeJSON}) == answer.TypeJSON
}

// serveJSON answers a client that asks for JSON.
func (h *Status) serveJSON(w http.ResponseWriter, r *http.Request, name string) error {
	if name == "" {
		return answer.WriteJSON(w, presentOf(h.hub))
	}
	s := h.hub.Service(name)
	if s == nil {
		return answer.AnswerError(w, answer.ApiError(http.StatusNotFound, "there is no service %s", name))
	}
	v := closeViewOf(s)
	v.DeadLetters = deadLetters(r.Context(), h.hub, name)
	return answer.WriteJSON(w, v)
}

// serviceCloseView is one service, and what happened to it.
type serviceCloseView struct {
	serviceView
	Needed     []hub.Span         `json:"needed_list"` // oldest first, as all that follows
	Predicted  []hub.Span         `json:"predicted_list"`
	Floors     []hub.Span         `json:"floor_list"`
	ColdStarts []hub.ColdStart    `json:"cold_start_list"`
	Failures   []hub.StartFailure `json:"failures"`
	Decisions  []decisionView     `json:"decisions"`

	DeadLetters []deadLetter `json:"dead_letters"` // the oldest, and those of callbacks
}

// decisionView is a decision, in words.
type decisionView struct {
	control.Decision
	Words string `json:"words"`
}

func closeViewOf(s *hub.Service) serviceCloseView {
	past := s.History()
	v := serviceCloseView{
		serviceView: viewOf(s), Needed: past.Needed, Predicted: past.Predicted, Floors: past.Floors, ColdStarts: past.ColdStarts, Failures: past.Failures, Decisions: []decisionView{},
	}
	v.InstanceList = s.Instances() // all
	for _, d := range s.Loop.Decisions() {
		v.Decisions = append(v.Decisions, decisionView{d, hub.Circumstances(d)})
	}
	return v
}

// serveOutput answers with the lines beyond those that the page has.
func (h *Status) serveOutput(w http.ResponseWriter, r *http.Request, name string) error {
	if h.HideOutput {
		return answer.AnswerError(w, answer.ApiError(http.StatusForbidden, "the live view does not show output: the configuration says `output off`"))
	}
	s := h.hub.Service(name)
	if s == nil {
		return answer.AnswerError(w, answer.ApiError(http.StatusNotFound, "there is no service %s", name))
	}
	if err := s.NoOutput(); err != nil {
		return answer.AnswerError(w, answer.OperationError(err))
	}
	after, _ := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64) // 0: all
	lines, _ := s.Outputs().After(after, viewLines)
	return answer.WriteJSON(w, lines)
}

// viewLines is how many lines of output the page shows.
const viewLines = 100

// statusOperations are what the page can do.
var statusOperations = map[string]bool{hub.VerbWake: true, hub.VerbSleep: true, hub.VerbSuspend: true, hub.VerbResume: true}

// operate does what a button asks for, if it is this page's button.
func (h *Status) operate(w http.ResponseWriter, r *http.Request, q url.Values) error {
	switch {
	case !h.Control:
		return answer.AnswerError(w, answer.ApiError(http.StatusForbidden, "nothing can be changed here: the configuration does not say `control on`"))
	case h.guard.Check(r) != nil:
		return answer.AnswerError(w, answer.ApiError(http.StatusForbidden, "the request comes from another site"))
	case r.Header.Get("Content-Type") != answer.TypeJSON:
		// A form of another site cannot say so, whatever the browser is.
		return answer.AnswerError(w, answer.ApiError(http.StatusUnsupportedMediaType, "the body has to be %s", answer.TypeJSON))
	}
	what := q.Get("do")
	if q.Has("task") {
		id := q.Get("task")
		err := answer.NoBody(r)
		if err == nil {
			err = operateTask(r.Context(), h.hub, id, what)
		}
		h.note(r, what, err, zap.String("task", id))
		if err != nil {
			return answer.AnswerError(w, err)
		}
		return answer.WriteJSON(w, map[string]string{"task": id})
	}
	name := q.Get("service")
	s := h.hub.Service(name)
	switch {
	case !statusOperations[what]:
		return answer.AnswerError(w, answer.ApiError(http.StatusBadRequest, "there is nothing like '%s' to do: use wake, sleep, suspend or resume", what))
	case s == nil:
		return answer.AnswerError(w, answer.ApiError(http.StatusNotFound, "there is no service %s", name))
	}
	var body struct {
		Reason string `json:"reason"`
	}
	err := answer.ReadBody(r, &body)
	if err == nil {
		err = answer.OperationError(h.hub.Operate(r.Context(), s, what, body.Reason))
	}
	h.note(r, what, err, zap.String("service", name))
	if err != nil {
		return answer.AnswerError(w, err)
	}
	return answer.WriteJSON(w, s.Summary())
}

// note logs what a button has asked for.
func (h *Status) note(r *http.Request, what string, refused error, of zap.Field) {
	user := ""
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		user, _ = repl.GetString("http.auth.user.id")
	}
	h.logger.Info("asked for in the live view", of, zap.String("operation", what),
		zap.String("user", user), zap.String("remote", r.RemoteAddr), zap.NamedError("refused", refused))
}

// stream answers with Server-Sent Events: first `present`, then a `frame` for
// what has changed, at last `bye`.
func (h *Status) stream(w http.ResponseWriter, r *http.Request) error {
	if r.Method == http.MethodHead {
		return nil
	}
	defer h.streams.Add(-1)
	if h.streams.Add(1) > int64(h.MaxStreams) {
		w.Header().Set("Retry-After", "10")
		return answer.AnswerError(w, answer.ApiError(http.StatusServiceUnavailable, "%d pages are open, and no more may be", h.MaxStreams))
	}
	present, frames, leave, err := feedOf(h.hub).join()
	if err != nil {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	defer leave()
	return answer.Stream(w, r, h.end, frames, answer.Event{Name: "present", Data: present})
}

var (
	_ caddy.Provisioner           = (*Status)(nil)
	_ caddy.CleanerUpper          = (*Status)(nil)
	_ caddyhttp.MiddlewareHandler = (*Status)(nil)
)
