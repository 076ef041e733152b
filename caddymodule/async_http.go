package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/munnerz/goautoneg"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

const (
	// tasksPath is between the path of a request that was stored and the id of its
	// task.
	tasksPath = "/.usher/tasks/"

	// mostWait is the longest time that a client can ask to wait for.
	mostWait = time.Minute

	// mostKey is the length of the longest idempotency key.
	mostKey = 255

	// mostLine is the length of the longest path with its query, and of the longest
	// value of a group.
	mostLine = 16 << 10
)

// serveAsync answers requests that are about tasks, and those that are to be stored.
// done is false for all others.
func (h *Handler) serveAsync(w http.ResponseWriter, r *http.Request) (done bool, err error) {
	if _, rest, ok := cutLast(r.URL.Path, tasksPath); ok {
		id, result := strings.CutSuffix(rest, "/result")
		return true, h.serveTask(w, r, id, result)
	}
	if len(h.Async.match) > 0 {
		if match, err := h.Async.match.AnyMatchWithError(r); err != nil || !match {
			return false, err
		}
	}
	preferred, wait := respondAsync(r.Header)
	if !preferred && h.Async.When != whenAlways {
		return false, nil
	}
	return true, h.storeRequest(w, r, preferred, wait)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	k := strings.LastIndex(s, sep)
	if k < 0 {
		return s, "", false
	}
	return s[:k], s[k+len(sep):], true
}

// respondAsync reads the Prefer headers of RFC 7240.
func respondAsync(h http.Header) (asked bool, wait time.Duration) {
	for preference := range strings.SplitSeq(answer.Preferences(h, "Prefer"), ",") {
		preference, _, _ = strings.Cut(preference, ";")
		name, value, _ := strings.Cut(preference, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "respond-async":
			asked = true
		case "wait":
			wait = seconds(strings.Trim(strings.TrimSpace(value), `"`))
		}
	}
	return asked, wait
}

// seconds reads how long a client would wait.
func seconds(s string) time.Duration {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, mostWait)
}

// taskProblem is an error that is answered as JSON.
func taskProblem(w http.ResponseWriter, status int, format string, args ...any) error {
	return answer.AnswerError(w, caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)})
}

// storeRequest stores r as a task, and answers when it is on the disk.
func (h *Handler) storeRequest(w http.ResponseWriter, r *http.Request, preferred bool, wait time.Duration) error {
	tasks := h.service.Hub.Tasks()
	if tasks == nil {
		return h.unavailable(w, errors.New("the configuration is not in force yet"))
	}
	n, err := h.newTask(r)
	if err != nil {
		return taskProblem(w, http.StatusBadRequest, "%v", err)
	}
	if err := h.setCallback(&n, r); err != nil {
		return taskProblem(w, http.StatusUnprocessableEntity, "%v", err)
	}
	task, _, err := tasks.Store.Put(r.Context(), n, http.MaxBytesReader(w, r.Body, h.Async.MaxBody))
	if err != nil {
		if reason := refusedFor(r, err); reason != "" {
			h.service.TaskRefused(reason)
		}
		return h.refuseTask(w, r, err)
	}
	if preferred {
		w.Header().Set("Preference-Applied", "respond-async")
	}
	if wait > 0 {
		if task, err = awaitTask(r.Context(), tasks, task, wait, h.shared.ended); err != nil {
			return h.refuseTask(w, r, err)
		}
		if task.State.Final() && task.Status != 0 {
			return h.replay(w, r, tasks, task)
		}
	}
	at := taskURL(r, task.ID)
	w.Header().Set("Location", at)
	w.Header().Set("Retry-After", "1")
	return writeTask(w, http.StatusAccepted, task, at)
}

// newTask describes r as a task.
func (h *Handler) newTask(r *http.Request) (async.NewTask, error) {
	a := h.Async
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	n := async.NewTask{
		Queue: h.Service,
		Request: async.Request{
			Method: r.Method, URI: r.URL.RequestURI(), Host: r.Host, Remote: r.RemoteAddr, Secure: isSecure(r),
			Header: make(http.Header),
		},
		Client: clientOf(replacer), Exclusive: a.Exclusive,
		Expires: time.Duration(a.Expires), Keep: time.Duration(a.Keep), MaxTasks: a.MaxTasks,
	}
	if len(n.Request.URI) > mostLine {
		return n, fmt.Errorf("the path and the query have %d bytes: a request with more than %d is not stored", len(n.Request.URI), mostLine)
	}
	for _, name := range a.Headers {
		if v, ok := r.Header[name]; ok {
			n.Request.Header[name] = slices.Clone(v)
		}
	}
	if a.group != "" {
		if n.Group = hub.Evaluate(replacer, a.group); len(n.Group) > mostLine {
			return n, fmt.Errorf("the value of the group has %d bytes, which are more than %d", len(n.Group), mostLine)
		}
	}
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) > 1 || len(keys) == 1 && (keys[0] == "" || len(keys[0]) > mostKey) {
		return n, fmt.Errorf("the idempotency key must be one value of 1 to %d bytes", mostKey)
	}
	if len(keys) == 1 {
		// Equal keys of two clients are two keys.
		n.Key = n.Client + "\n" + keys[0]
		n.Fingerprint = strings.Join([]string{n.Request.Method, n.Request.Host, n.Request.URI}, "\n")
		n.Request.Header.Set("Idempotency-Key", keys[0])
	}
	return n, nil
}

// clientOf names the user that a handler before has authenticated; empty without.
func clientOf(replacer *caddy.Replacer) string {
	return hub.Evaluate(replacer, "http.auth.user.id")
}

// refuseTask answers a request that could not be stored, or is about a task that
// cannot be told of.
func (h *Handler) refuseTask(w http.ResponseWriter, r *http.Request, err error) error {
	if r.Context().Err() != nil {
		return caddyhttp.Error(statusClientGone, err)
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return taskProblem(w, http.StatusRequestEntityTooLarge, "the body is longer than %d bytes (max_body)", tooLarge.Limit)
	}
	if _, ok := errors.AsType[*async.BodyError](err); ok {
		return taskProblem(w, http.StatusBadRequest, "%v", err)
	}
	switch {
	case errors.Is(err, async.ErrKeyReused):
		return taskProblem(w, http.StatusUnprocessableEntity, "%v", err)
	case errors.Is(err, async.ErrNotFound):
		return taskProblem(w, http.StatusNotFound, "%v", err)
	case errors.Is(err, async.ErrFull):
		w.Header().Set("Retry-After", "10")
		return taskProblem(w, http.StatusServiceUnavailable, "service %s: %v", h.Service, err)
	}
	return h.unavailable(w, err)
}

// refusedFor is why a request could not be stored; empty if that is up to the client.
func refusedFor(r *http.Request, err error) string {
	_, cut := errors.AsType[*async.BodyError](err)
	switch {
	case r.Context().Err() != nil, cut, errors.Is(err, async.ErrKeyReused):
		return ""
	case errors.Is(err, async.ErrFull):
		return hub.RefusedFull
	}
	return hub.RefusedStore
}

func (h *Handler) unavailable(w http.ResponseWriter, err error) error {
	w.Header().Set("Retry-After", "10")
	return taskProblem(w, http.StatusServiceUnavailable, "service %s: nothing can be stored now: %v", h.Service, err)
}

// taskURL is where the status of a task is: below the path for which r has asked.
func taskURL(r *http.Request, id string) string {
	asked := r.URL
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && original.URL != nil {
		asked = original.URL
	}
	path := asked.EscapedPath()
	if before, _, ok := cutLast(path, tasksPath); ok {
		path = before
	}
	return strings.TrimRight(path, "/") + tasksPath + id
}

// awaitTask waits until a task has ended, or for so long.
func awaitTask(ctx context.Context, tasks *hub.Tasks, task async.Task, wait time.Duration, ended <-chan struct{}) (async.Task, error) {
	changes, stop := tasks.Follow(task.ID)
	defer stop()
	over := time.NewTimer(wait)
	defer over.Stop()
	// A store may leave out changes.
	again := time.NewTicker(5 * time.Second)
	defer again.Stop()
	for {
		var err error
		if task, err = tasks.Store.Get(ctx, task.ID); err != nil || task.State.Final() {
			return task, err
		}
		select {
		case <-changes:
		case <-again.C:
		case <-over.C:
			return task, nil
		case <-ended:
			return task, nil
		case <-ctx.Done():
			return task, ctx.Err()
		}
	}
}

// serveTask answers a request about a task.
func (h *Handler) serveTask(w http.ResponseWriter, r *http.Request, id string, result bool) error {
	tasks := h.service.Hub.Tasks()
	if tasks == nil {
		return h.unavailable(w, errors.New("the configuration is not in force yet"))
	}
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	task, err := tasks.Store.Get(r.Context(), id)
	if err == nil && (task.Queue != h.Service || task.Client != clientOf(replacer)) {
		err = async.ErrNotFound // it is none of this client's business whether there is one
	}
	if err != nil {
		return h.refuseTask(w, r, err)
	}
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
	case r.Method == http.MethodDelete && !result:
		return h.cancelTask(w, r, tasks, task)
	default:
		w.Header().Set("Allow", "GET, HEAD, DELETE")
		return taskProblem(w, http.StatusMethodNotAllowed, "a task can be looked at with GET, and cancelled with DELETE")
	}
	if !result {
		return h.showTask(w, r, tasks, task)
	}
	if task.Status == 0 || !task.State.Final() {
		return taskProblem(w, http.StatusNotFound, "the task is %s, and has no result", task.State)
	}
	return h.replay(w, r, tasks, task)
}

// showTask tells of a task: as JSON, to browsers as a page, or as events until it has
// ended.
func (h *Handler) showTask(w http.ResponseWriter, r *http.Request, tasks *hub.Tasks, task async.Task) (err error) {
	at := taskURL(r, task.ID)
	if wantsEvents(r) {
		return h.streamTask(w, r, tasks, task, at)
	}
	if wait := seconds(r.URL.Query().Get("wait")); wait > 0 && !task.State.Final() {
		if task, err = awaitTask(r.Context(), tasks, task, wait, h.shared.ended); err != nil {
			return h.refuseTask(w, r, err)
		}
	}
	if navigates(r) {
		return h.writeTaskPage(w, r, tasks, task)
	}
	status := http.StatusOK
	switch {
	case task.State == async.Done && task.Status != 0:
		status = http.StatusSeeOther
		w.Header().Set("Location", at+"/result")
	case !task.State.Final():
		w.Header().Set("Retry-After", "1")
	}
	return writeTask(w, status, task, at)
}

// wantsEvents reports whether r asks for a stream of events.
func wantsEvents(r *http.Request) bool {
	accept := answer.Preferences(r.Header, "Accept")
	return goautoneg.Negotiate(accept, []string{answer.TypeJSON, answer.TypeEvents}) == answer.TypeEvents
}

// streamTask tells of each change of a task, as events.
func (h *Handler) streamTask(w http.ResponseWriter, r *http.Request, tasks *hub.Tasks, task async.Task, at string) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events := make(chan answer.Event)
	go func() {
		defer close(events)
		changes, stop := tasks.Follow(task.ID)
		defer stop()
		again := time.NewTicker(5 * time.Second) // for progress
		defer again.Stop()
		before := ""
		for {
			task, err := tasks.Store.Get(ctx, task.ID)
			if err != nil {
				return
			}
			b, err := json.Marshal(describeTask(task, at))
			if err != nil {
				return
			}
			if string(b) != before {
				select {
				case events <- answer.Event{Name: "task", Data: b}:
					before = string(b)
				case <-ctx.Done():
					return
				}
			}
			if task.State.Final() {
				return
			}
			select {
			case <-changes:
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return answer.Stream(w, r, h.shared.ended, events)
}

// cancelTask cancels a task.
func (h *Handler) cancelTask(w http.ResponseWriter, r *http.Request, tasks *hub.Tasks, task async.Task) error {
	task, err := tasks.Dispatcher.Cancel(r.Context(), task.ID)
	switch {
	case errors.Is(err, async.ErrFinished):
		return taskProblem(w, http.StatusConflict, "the task has ended: it is %s", task.State)
	case err != nil:
		return h.refuseTask(w, r, err)
	case task.State == async.Cancelled:
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return writeTask(w, http.StatusAccepted, task, taskURL(r, task.ID))
}

// replay answers with the result of a task.
func (h *Handler) replay(w http.ResponseWriter, r *http.Request, tasks *hub.Tasks, task async.Task) error {
	result, err := tasks.Store.Result(r.Context(), task.ID)
	if err != nil {
		return h.refuseTask(w, r, err)
	}
	defer result.Body.Close()
	header := w.Header()
	maps.Copy(header, result.Header)
	header.Del(answer.HeaderError)
	header.Set("Content-Length", strconv.FormatInt(result.Size, 10))
	header.Set("Usher-Task", task.ID)
	if result.Status == http.StatusNoContent || result.Status == http.StatusNotModified {
		header.Del("Content-Length")
	}
	w.WriteHeader(result.Status)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(w, result.Body) // the client may be gone
	}
	return nil
}

// taskStatus is a task as clients see it.
type taskStatus struct {
	ID       string     `json:"id"`
	Service  string     `json:"service"`
	State    string     `json:"state"`
	Reason   string     `json:"reason,omitempty"`
	Attempts int        `json:"attempts"`
	Progress *int       `json:"progress,omitempty"`
	Accepted time.Time  `json:"accepted"`
	Due      *time.Time `json:"due,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
	Ended    *time.Time `json:"ended,omitempty"`
	Status   int        `json:"status,omitempty"`
	Size     *int64     `json:"size,omitempty"`
	URL      string     `json:"url"`
	Result   string     `json:"result,omitempty"`
}

func describeTask(t async.Task, at string) taskStatus {
	s := taskStatus{
		ID: t.ID, Service: t.Queue, State: t.State.String(), Reason: t.Reason, Attempts: t.Attempt, Accepted: t.Accepted.UTC(), URL: at,
	}
	if t.Cancelling {
		s.Reason = "it is to be cancelled"
	}
	if t.Progress >= 0 && t.State == async.Running {
		s.Progress = &t.Progress
	}
	for to, from := range map[**time.Time]time.Time{&s.Due: t.Due, &s.Expires: t.Expires, &s.Ended: t.Ended} {
		if from = from.UTC(); !from.IsZero() {
			*to = &from
		}
	}
	if t.Status != 0 && t.State.Final() {
		s.Status, s.Size, s.Result = t.Status, &t.ResultSize, at+"/result"
	}
	return s
}

func writeTask(w http.ResponseWriter, status int, t async.Task, at string) error {
	b, err := json.Marshal(describeTask(t, at))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", answer.TypeJSON)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(answer.ForeignJSON(b), '\n')) // the client may be gone
	return nil
}
