package registryapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/registry"
)

// Caller is on whose behalf a call is made.
type Caller struct {
	// Name is what history and log say.
	Name string

	// Owner is whose services the caller may see and change. It is empty for an
	// operator, who may see and change those of all owners.
	Owner    string
	Operator bool
}

// may says whether the caller may see a service.
func (c Caller) may(v *hub.MadeView) bool { return c.Operator || v.Owner == c.Owner && c.Owner != "" }

// The parts of paths below the name of a service.
const (
	PartRevisions = "revisions"
	PartRollback  = "rollback"
)

// Handles says whether a call is one of this package, for a path of the form
// `services/<name>[/...]`, split at its slashes.
func Handles(method string, parts []string) bool {
	switch {
	case len(parts) == 2:
		return method == http.MethodPut || method == http.MethodPatch || method == http.MethodDelete
	case len(parts) == 3:
		return parts[2] == PartRevisions || parts[2] == PartRollback
	}
	return false
}

// Serve answers a call. Its errors are those of the admin API.
func Serve(w http.ResponseWriter, r *http.Request, h *hub.Hub, caller Caller, parts []string) error {
	if h == nil || h.Registry() == nil {
		return answer.ApiError(http.StatusNotFound, "%v", hub.ErrNoRegistry)
	}
	allowed, call := find(parts)
	if call == nil {
		return answer.ApiError(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if slices.Contains(allowed, method) {
		return call(w, r, h, caller, parts)
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return answer.ApiError(http.StatusMethodNotAllowed, "%s is answered to %s, not to %s", r.URL.Path, strings.Join(allowed, ", "), r.Method)
}

type serve func(http.ResponseWriter, *http.Request, *hub.Hub, Caller, []string) error

// find returns what answers at a path, and to which methods.
func find(parts []string) ([]string, serve) {
	switch {
	case len(parts) == 1 && parts[0] == "services":
		return []string{http.MethodGet}, list
	case len(parts) < 2 || parts[0] != "services" || parts[1] == "":
	case len(parts) == 2:
		return []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete}, one
	case len(parts) == 3 && parts[2] == PartRevisions:
		return []string{http.MethodGet}, revisions
	case len(parts) == 3 && parts[2] == PartRollback:
		return []string{http.MethodPost}, rollback
	}
	return nil, nil
}

func list(w http.ResponseWriter, _ *http.Request, h *hub.Hub, caller Caller, _ []string) error {
	owner := ""
	if !caller.Operator {
		owner = caller.Owner
	}
	all := []*hub.MadeView{}
	if caller.Operator || owner != "" {
		var err error
		if all, err = h.AllMade(owner); err != nil {
			return err
		}
	}
	return answer.WriteJSON(w, all)
}

// view returns the service that a call is about, if the caller may see it. That
// there is one of another owner is not told.
func view(h *hub.Hub, caller Caller, name string) (*hub.MadeView, error) {
	v, err := h.Made(name)
	if err != nil {
		return nil, err
	}
	if v == nil || !caller.may(v) {
		return nil, answer.ApiError(http.StatusNotFound, "there is no service %s that was made at run time", name)
	}
	return v, nil
}

// one reads or changes a service.
func one(w http.ResponseWriter, r *http.Request, h *hub.Hub, caller Caller, parts []string) error {
	name := parts[1]
	change := hub.MadeChange{Name: name}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		v, err := view(h, caller, name)
		if err != nil {
			return err
		}
		return write(w, http.StatusOK, v)
	case http.MethodPut:
		change.Do = hub.MadePut
	case http.MethodPatch:
		change.Do = hub.MadePatch
	case http.MethodDelete:
		if err := answer.NoBody(r); err != nil {
			return err
		}
		change.Do = hub.MadeDelete
	}
	if change.Do != hub.MadeDelete {
		var err error
		if change.Body, err = body(r); err != nil {
			return err
		}
	}
	return do(w, r, h, caller, change)
}

// body reads the body of a change, which is JSON, whatever type the client gives it:
// curl calls all that it sends a form.
func body(r *http.Request) (json.RawMessage, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, registry.MaxBody+1))
	switch {
	case err != nil:
		return nil, answer.ApiError(http.StatusBadRequest, "reading the body: %w", err)
	case len(b) > registry.MaxBody:
		return nil, answer.ApiError(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", registry.MaxBody)
	case !json.Valid(b):
		return nil, answer.ApiError(http.StatusBadRequest, "the body is no JSON")
	}
	return b, nil
}

func rollback(w http.ResponseWriter, r *http.Request, h *hub.Hub, caller Caller, parts []string) error {
	var asked struct {
		Revision int `json:"revision"`
	}
	if err := answer.ReadBody(r, &asked); err != nil {
		return err
	}
	if asked.Revision < 0 {
		return answer.ApiError(http.StatusBadRequest, "there is no revision %d", asked.Revision)
	}
	return do(w, r, h, caller, hub.MadeChange{Do: hub.MadeRollback, Name: parts[1], To: asked.Revision})
}

func revisions(w http.ResponseWriter, _ *http.Request, h *hub.Hub, caller Caller, parts []string) error {
	if _, err := view(h, caller, parts[1]); err != nil {
		return err
	}
	list, err := h.Revisions(parts[1])
	if err != nil {
		return err
	}
	return answer.WriteJSON(w, list)
}

// do makes a change, and answers with the service as it is then.
func do(w http.ResponseWriter, r *http.Request, h *hub.Hub, caller Caller, change hub.MadeChange) error {
	change.Call = registry.Call{
		By: caller.Name, Owner: caller.Owner, Operator: caller.Operator,
		IfMatch: r.Header.Get("If-Match"), IfNoneMatch: r.Header.Get("If-None-Match"),
	}
	if caller.Operator {
		change.Call.Owner = r.URL.Query().Get("owner")
	}
	res, err := h.ChangeMade(r.Context(), change)
	if err != nil {
		return Failure(w, err)
	}
	if res.Record == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	v, err := h.Made(change.Name)
	switch {
	case err != nil:
		return err
	case v == nil:
		// Another one has deleted it meanwhile.
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	status := http.StatusOK
	if res.Created {
		status = http.StatusCreated
	}
	return write(w, status, v)
}

// Failure gives an error of a change its status: that of a registry.Error, or that of
// an operation.
func Failure(w http.ResponseWriter, err error) error {
	if e, ok := errors.AsType[*registry.Error](err); ok {
		if e.Kind == registry.StoreFailed || e.Kind == registry.TooMany {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		}
		return answer.ApiError(e.Kind.Status(), "%w", err)
	}
	return answer.OperationError(err)
}

// retryAfter is in how many seconds a change may be tried again.
const retryAfter = 10

// write answers with a service, its ETag in the header.
func write(w http.ResponseWriter, status int, v *hub.MadeView) error {
	if v.ETag != "" {
		w.Header().Set("ETag", v.ETag)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", answer.TypeJSON)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(answer.ForeignJSON(b), '\n'))
	return nil
}
