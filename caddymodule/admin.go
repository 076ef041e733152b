package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
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

// adminBodyMax bounds the body of a call.
const adminBodyMax = 64 << 10

func apiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// serve finds the call.
func (a Admin) serve(w http.ResponseWriter, r *http.Request) error {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/usher/"), "/")
	var call func(http.ResponseWriter, *http.Request, *hub, *service, string) error
	method := http.MethodGet
	named := len(parts) >= 2 && parts[0] == "services"
	switch {
	case len(parts) == 1 && parts[0] == "services":
		call = listServices
	case len(parts) == 1 && parts[0] == "events":
		call = streamEvents
	case named && len(parts) == 2:
		call = showService
	case named && len(parts) == 3 && parts[2] == "decisions":
		call = listDecisions
	case named && len(parts) == 3:
		call, method = operations[parts[2]], http.MethodPost
	case named && len(parts) == 4 && parts[2] == "instances":
		call, method = deleteInstance, http.MethodDelete
	}
	if call == nil {
		return apiError(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	}
	h := latestHub.Load()
	var s *service
	if named {
		if h != nil {
			s = h.service(parts[1])
		}
		if s == nil {
			return apiError(http.StatusNotFound, "there is no service %s", parts[1])
		}
	}
	if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
		w.Header().Set("Allow", method)
		return apiError(http.StatusMethodNotAllowed, "%s is answered to %s, not to %s", r.URL.Path, method, r.Method)
	}
	return call(w, r, h, s, parts[len(parts)-1])
}

// operations are what an operator can do with a service.
var operations = map[string]func(http.ResponseWriter, *http.Request, *hub, *service, string) error{
	"wake": operation(func(_ *http.Request, _ *hub, s *service) error {
		if s.loop.Status().State == scaler.Suspended {
			return apiError(http.StatusConflict, "service %s is suspended: resume it first", s.name)
		}
		s.loop.Wake()
		return nil
	}),
	"sleep": operation(func(_ *http.Request, _ *hub, s *service) error {
		s.loop.Sleep()
		return nil
	}),
	"suspend": suspendService,
	"resume": operation(func(r *http.Request, h *hub, s *service) error {
		return h.resume(r.Context(), s)
	}),
	"restart": operation(func(_ *http.Request, _ *hub, s *service) error {
		return s.loop.Restart()
	}),
}

// operation is a call without a body, which is answered with the service.
func operation(do func(*http.Request, *hub, *service) error) func(http.ResponseWriter, *http.Request, *hub, *service, string) error {
	return func(w http.ResponseWriter, r *http.Request, h *hub, s *service, _ string) error {
		if err := noBody(r); err != nil {
			return err
		}
		if err := do(r, h, s); err != nil {
			if _, ok := errors.AsType[caddy.APIError](err); ok {
				return err
			}
			return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
		}
		return writeJSON(w, s.summary())
	}
}

// noBody accepts an empty body, or an empty object.
func noBody(r *http.Request) error {
	return readBody(r, &struct{}{})
}

// readBody decodes a body, if there is one, into v.
func readBody(r *http.Request, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, adminBodyMax+1))
	if err != nil {
		return apiError(http.StatusBadRequest, "reading the body: %w", err)
	}
	if len(b) > adminBodyMax {
		return apiError(http.StatusBadRequest, "the body is longer than %d bytes", adminBodyMax)
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return apiError(http.StatusBadRequest, "the body is not as expected: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return apiError(http.StatusBadRequest, "the body goes on after its object")
	}
	return nil
}

func suspendService(w http.ResponseWriter, r *http.Request, h *hub, s *service, _ string) error {
	var body struct {
		Reason string `json:"reason"`
	}
	if err := readBody(r, &body); err != nil {
		return err
	}
	if body.Reason == "" {
		body.Reason = "suspended by an operator"
	}
	if err := h.suspend(r.Context(), s, body.Reason); err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	return writeJSON(w, s.summary())
}

func deleteInstance(w http.ResponseWriter, r *http.Request, _ *hub, s *service, id string) error {
	if err := noBody(r); err != nil {
		return err
	}
	if !s.loop.StopInstance(id) {
		return apiError(http.StatusNotFound, "service %s has no instance %s", s.name, id)
	}
	return writeJSON(w, s.summary())
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(b, '\n'))
	return nil
}

// serviceSummary is one service in a list.
type serviceSummary struct {
	Name            string         `json:"name"`
	Backend         string         `json:"backend"`
	State           scaler.State   `json:"state"`
	Target          int            `json:"target"`
	Min             int            `json:"min"`
	Max             int            `json:"max"`
	Instances       instanceCounts `json:"instances"`
	Slots           slotCounts     `json:"slots"`
	Waiting         int            `json:"waiting"`
	Visitors        int            `json:"visitors,omitempty"` // wait in their browser
	OldestWaitMS    int64          `json:"oldest_wait_ms"`
	ColdStarts      int            `json:"cold_starts"`
	LastColdStartMS int64          `json:"last_cold_start_ms"`
	LastError       *string        `json:"last_error"`
}

type instanceCounts struct {
	Starting int `json:"starting"`
	Ready    int `json:"ready"`
	Ejected  int `json:"ejected"`
	Draining int `json:"draining"`
}

type slotCounts struct {
	Total *int `json:"total"` // null: unlimited
	InUse int  `json:"in_use"`
}

// serviceDetails is one service, whole.
type serviceDetails struct {
	serviceSummary
	InstanceList []instanceDetails `json:"instance_list"`
	Config       json.RawMessage   `json:"config"`
	Suspension   *suspension       `json:"suspension,omitempty"` // while it is suspended
}

type instanceDetails struct {
	ID       string               `json:"id"`
	Address  string               `json:"address"`
	State    scaler.InstanceState `json:"state"`
	Revision string               `json:"revision"`
	Slots    *int                 `json:"slots"` // null: unlimited
	InUse    int                  `json:"in_use"`
	Since    time.Time            `json:"since"`
}

// current returns the definition in force.
func (s *service) current() *definition {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.definition
}

func (s *service) summary() serviceSummary {
	d := s.current()
	stats, st := s.reserver.Stats(), s.loop.Status()
	sum := serviceSummary{
		Name: s.name, Backend: d.backendType(), State: st.State, Target: st.Target,
		Min: d.service.Instances.Min, Max: d.service.Instances.Max,
		Instances: instanceCounts{Starting: st.Starting, Ready: st.Ready, Ejected: st.Ejected, Draining: st.Draining},
		Slots:     slotCounts{InUse: stats.InUse}, Waiting: stats.Waiting, Visitors: stats.Guests,
		ColdStarts: st.ColdStarts, LastColdStartMS: st.ColdStart.Milliseconds(),
	}
	if *d.service.Concurrency != Unlimited {
		total := stats.Slots
		sum.Slots.Total = &total
	}
	if !stats.OldestWait.IsZero() {
		sum.OldestWaitMS = time.Since(stats.OldestWait).Milliseconds()
	}
	if st.LastError != nil {
		msg := st.LastError.Error()
		sum.LastError = &msg
	}
	return sum
}

func listServices(w http.ResponseWriter, _ *http.Request, h *hub, _ *service, _ string) error {
	list := []serviceSummary{}
	if h != nil {
		for _, s := range h.all() {
			list = append(list, s.summary())
		}
	}
	return writeJSON(w, list)
}

func showService(w http.ResponseWriter, _ *http.Request, _ *hub, s *service, _ string) error {
	details, err := s.details()
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	return writeJSON(w, details)
}

func (s *service) details() (serviceDetails, error) {
	config, err := s.current().shown()
	if err != nil {
		return serviceDetails{}, err
	}
	return serviceDetails{
		serviceSummary: s.summary(), InstanceList: s.instances(), Config: config, Suspension: s.suspended(),
	}, nil
}

// instances describes the instances, oldest first.
func (s *service) instances() []instanceDetails {
	unlimited := *s.current().service.Concurrency == Unlimited
	list := []instanceDetails{}
	for _, i := range s.loop.Instances() {
		e := instanceDetails{
			ID: i.ID, Address: dialAddress(i.Network, i.Address), State: i.State, Revision: i.Revision,
			InUse: i.InUse, Since: i.Since,
		}
		if !unlimited {
			e.Slots = &i.Slots
		}
		list = append(list, e)
	}
	return list
}

// suspended returns the suspension, or nil.
func (s *service) suspended() *suspension {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.suspension
}

func listDecisions(w http.ResponseWriter, _ *http.Request, _ *hub, s *service, _ string) error {
	return writeJSON(w, s.loop.Decisions())
}

var _ caddy.AdminRouter = (*Admin)(nil)
