package admin

import (
	"errors"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/registryapi"
)

func init() {
	caddy.RegisterModule(Admin{})
}

// Admin is Usher's part of Caddy's admin API, below /usher/. It keeps no
// state: Caddy makes a new one for every configuration, and never cleans up.
type Admin struct{}

// CaddyModule returns the Caddy module information.
func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.usher",
		New: func() caddy.Module { return new(Admin) },
	}
}

// Routes implements caddy.AdminRouter.
func (a Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/usher/", Handler: caddy.AdminHandlerFunc(a.serve)}}
}

// serve finds the call.
func (a Admin) serve(w http.ResponseWriter, r *http.Request) error {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/usher/"), "/")
	var call func(http.ResponseWriter, *http.Request, *hub.Hub, *hub.Service, string) error
	method := http.MethodGet
	named := len(parts) >= 2 && parts[0] == "services"
	if named && registryapi.Handles(r.Method, parts) && hasRegistry() {
		return changeService(w, r, parts)
	}
	if parts[0] == "splits" {
		return serveSplits(w, r, parts[1:])
	}
	switch {
	case len(parts) == 1 && parts[0] == "services":
		call = listServices
	case len(parts) == 1 && parts[0] == "events":
		call = streamEvents
	case len(parts) == 1 && parts[0] == "cluster":
		call = showCluster
	case len(parts) == 2 && parts[0] == "cluster" && parts[1] == "forget":
		call, method = forgetMember, http.MethodPost
	case len(parts) == 1 && parts[0] == "registry":
		call = showRegistry
	case len(parts) == 1 && parts[0] == "tasks":
		call = listTasks
	case len(parts) == 2 && parts[0] == "tasks" && r.Method == http.MethodDelete:
		call, method = purgeTask, http.MethodDelete
	case len(parts) == 2 && parts[0] == "tasks":
		call = showTask
	case len(parts) == 3 && parts[0] == "tasks" && (parts[2] == "cancel" || parts[2] == "retry"):
		call, method = operateTask(parts[2]), http.MethodPost
	case named && len(parts) == 2:
		call = showService
	case named && len(parts) == 3 && parts[2] == "decisions":
		call = listDecisions
	case named && len(parts) == 3 && parts[2] == "logs":
		call = serviceLogs
	case named && len(parts) == 3 && hub.IsOperation(parts[2]):
		call, method = operate, http.MethodPost
	case named && len(parts) == 4 && parts[2] == "instances":
		call, method = deleteInstance, http.MethodDelete
	}
	if call == nil {
		return answer.ApiError(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	}
	h := hub.Latest.Load()
	var s *hub.Service
	if named {
		if h != nil {
			s = h.Service(parts[1])
		}
		if s == nil && len(parts) == 2 && h != nil {
			// It may be one that does not run: its definition cannot be used, or it was
			// deleted.
			if v, err := h.Made(parts[1]); err != nil || v != nil {
				return changeService(w, r, parts)
			}
		}
		if s == nil {
			return answer.ApiError(http.StatusNotFound, "there is no service %s", parts[1])
		}
	}
	if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
		w.Header().Set("Allow", method)
		return answer.ApiError(http.StatusMethodNotAllowed, "%s is answered to %s, not to %s", r.URL.Path, method, r.Method)
	}
	last := parts[len(parts)-1]
	if len(parts) == 3 && parts[0] == "tasks" {
		last = parts[1]
	}
	return call(w, r, h, s, last)
}

// operate is a call that does something with a service. It has no body, but
// for suspend, which may have a reason.
func operate(w http.ResponseWriter, r *http.Request, h *hub.Hub, s *hub.Service, what string) error {
	var body struct {
		Reason string `json:"reason"`
	}
	var err error
	if what == hub.VerbSuspend {
		err = answer.ReadBody(r, &body)
	} else {
		err = answer.NoBody(r)
	}
	if err != nil {
		return err
	}
	if err := answer.OperationError(h.Operate(r.Context(), s, what, body.Reason)); err != nil {
		return err
	}
	return answer.WriteJSON(w, s.Summary())
}

func showCluster(w http.ResponseWriter, _ *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	var st *hub.ClusterStatus
	if h != nil {
		st = h.ClusterStatus()
	}
	if st == nil {
		return answer.ApiError(http.StatusNotFound, "%v", hub.ErrNoCluster)
	}
	return answer.WriteJSON(w, st)
}

// forgetMember takes an operator's word that a member has ended.
func forgetMember(w http.ResponseWriter, r *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	var body struct {
		Member string `json:"member"`
	}
	if err := answer.ReadBody(r, &body); err != nil {
		return err
	}
	if h == nil {
		return answer.ApiError(http.StatusNotFound, "%v", hub.ErrNoCluster)
	}
	if err := h.ForgetMember(body.Member); errors.Is(err, hub.ErrNoCluster) {
		return answer.ApiError(http.StatusNotFound, "%v", err)
	} else if err != nil {
		return answer.ApiError(http.StatusConflict, "%v", err)
	}
	return answer.WriteJSON(w, h.ClusterStatus())
}

func deleteInstance(w http.ResponseWriter, r *http.Request, h *hub.Hub, s *hub.Service, id string) error {
	if err := answer.NoBody(r); err != nil {
		return err
	}
	switch err := h.StopInstance(r.Context(), s, id); {
	case errors.Is(err, hub.ErrNoInstance):
		return answer.ApiError(http.StatusNotFound, "service %s has no instance %s", s.Name, id)
	case err != nil:
		return answer.OperationError(err)
	}
	return answer.WriteJSON(w, s.Summary())
}

func listServices(w http.ResponseWriter, _ *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	list := []hub.ServiceSummary{}
	if h != nil {
		for _, s := range h.All() {
			list = append(list, s.Summary())
		}
	}
	return answer.WriteJSON(w, list)
}

func showService(w http.ResponseWriter, r *http.Request, h *hub.Hub, s *hub.Service, _ string) error {
	details, err := s.Details(r.Context())
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	if details.Made, err = h.Made(s.Name); err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	if details.Made != nil && details.Made.ETag != "" {
		w.Header().Set("ETag", details.Made.ETag)
	}
	return answer.WriteJSON(w, details)
}

// changeService is a call that changes a service that is made while Caddy runs, or
// shows what is kept of it. Those who reach the admin API are operators.
func changeService(w http.ResponseWriter, r *http.Request, parts []string) error {
	return registryapi.Serve(w, r, hub.Latest.Load(), registryapi.Caller{Name: "the admin API", Operator: true}, parts)
}

func hasRegistry() bool {
	h := hub.Latest.Load()
	return h != nil && h.Registry() != nil
}

// showRegistry shows what is found on platforms, and which services do not run as
// their definitions say.
func showRegistry(w http.ResponseWriter, _ *http.Request, h *hub.Hub, _ *hub.Service, _ string) error {
	if h != nil {
		if v := h.RegistryView(); v != nil {
			return answer.WriteJSON(w, v)
		}
	}
	return answer.ApiError(http.StatusNotFound, "%v", hub.ErrNoRegistry)
}

func listDecisions(w http.ResponseWriter, _ *http.Request, _ *hub.Hub, s *hub.Service, _ string) error {
	return answer.WriteJSON(w, s.Loop.Decisions())
}

var _ caddy.AdminRouter = (*Admin)(nil)
