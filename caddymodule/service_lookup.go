package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/registry"
)

// The codes of the answers to requests for which there is no service.
const (
	codeUnknownService      = "unknown_service"
	codeRegistryUnavailable = "registry_unavailable"
	codeBadParam            = "bad_param"
	codeTooManyServices     = "too_many_services"
)

// lookup finds the service of each request by what a placeholder says.
type lookup struct {
	placeholder string
	from        *regexp.Regexp // nil without
	byHost      bool           // by the hosts that services have, not by their names
	configured  map[string]*hub.Service
	hub         *hub.Hub
}

// fromHost are the placeholders that say to which host a request was sent. The
// site of the handler says which hosts there are, so clients cannot choose freely.
const (
	placeholderHost  = "http.request.host"
	placeholderLabel = "http.request.host.labels."
)

// chosenByClient begins the placeholders whose value a client chooses freely.
const chosenByClient = "http.request."

// isPlaceholder says whether the name of a service stands in the request.
func isPlaceholder(service string) bool { return strings.Contains(service, "{") }

// newLookup checks what the handler says. The configuration's services are added
// when it comes into force.
func newLookup(service, from string) (*lookup, error) {
	name, err := hub.PlaceholderName(service)
	if err != nil {
		return nil, err
	}
	if hub.IsLearned(name) {
		return nil, fmt.Errorf("%s has no value when a request comes", service)
	}
	l := &lookup{placeholder: name, byHost: name == placeholderHost}
	if from != "" {
		if l.from, err = regexp.Compile(from); err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
		return l, nil
	}
	if strings.HasPrefix(name, chosenByClient) && !l.byHost && !strings.HasPrefix(name, placeholderLabel) {
		return nil, fmt.Errorf("clients choose %s freely, and could reach every service by it: say with 'from' and a pattern which names they may use", service)
	}
	return l, nil
}

// finder finds the service of a request, where that is not the same for all. If
// there is none it answers.
type finder interface {
	find(h *Handler, w http.ResponseWriter, r *http.Request) (f found, answered bool)
}

// found is the service of a request. Of a split it is that of a side.
type found struct {
	service *hub.Service
	choice  choice // only with a split
}

// noService is why a request has no service.
type noService struct {
	status       int
	code, detail string
}

// isOfRequest says whether the request is wrong: no other service would take it.
func (n *noService) isOfRequest() bool { return n.code == codeBadParam }

var (
	noneKnown      = &noService{http.StatusServiceUnavailable, codeRegistryUnavailable, "the services that were made while the server runs could not be read yet"}
	noneOfThatName = &noService{http.StatusNotFound, codeUnknownService, "there is no such service"}
	noneUsable     = &noService{http.StatusServiceUnavailable, codeStartFailed, "the definition of the service cannot be used"}
)

// provisionLookup lets h find its service for each request.
func (h *Handler) provisionLookup(app *App) error {
	switch {
	case h.Define != nil:
		return errors.New("a service that a placeholder names is not defined here: it is made while Caddy runs, from a template")
	case h.Async != nil:
		return errors.New("async: requests are stored for a service that the configuration names, not for one that a placeholder names")
	}
	l, err := newLookup(h.Service, h.From)
	if err != nil {
		return err
	}
	// It is complete when the configuration comes into force, and does not change
	// after that.
	l.hub, l.configured = app.hub, app.generation.Services
	h.finder = l
	return nil
}

// find implements finder.
func (l *lookup) find(h *Handler, w http.ResponseWriter, r *http.Request) (f found, answered bool) {
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	name := hub.Evaluate(replacer, l.placeholder)
	if l.from != nil && !l.from.MatchString(name) {
		name = ""
	}
	made := l.made(name)
	if made == nil {
		if s := l.configured[name]; s != nil && l.from != nil {
			return found{service: s}, false
		}
	}
	s, none := madeFor(l.hub, made, r)
	if none != nil {
		h.refuseUnknown(w, r, none)
		return found{}, true
	}
	return found{service: s}, false
}

// madeFor returns the service for r: made itself, or the variant of it with the
// params that r has. made is nil if there is none of that name.
func madeFor(h *hub.Hub, made *hub.Made, r *http.Request) (*hub.Service, *noService) {
	switch {
	case made == nil && !h.MadeKnown():
		return nil, noneKnown
	case made == nil:
		return nil, noneOfThatName
	case made.Trouble != nil:
		return nil, noneUsable
	}
	var values map[string]string
	for _, p := range made.RequestParams {
		if v := r.Header.Values(p.Header); len(v) > 0 {
			if values == nil {
				values = make(map[string]string)
			}
			values[p.Name] = strings.Join(v, ",")
		}
	}
	if values == nil {
		return made.Service, nil
	}
	s, err := h.Variant(made, values)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, hub.ErrTooManyServices):
		return nil, &noService{http.StatusTooManyRequests, codeTooManyServices, err.Error()}
	}
	switch registry.KindOf(err) {
	case registry.Invalid, registry.Forbidden:
		return nil, &noService{http.StatusBadRequest, codeBadParam, err.Error()}
	case registry.NotFound:
		return nil, noneOfThatName
	}
	return nil, noneUsable // what is wrong is the operator's to know
}

func (l *lookup) made(name string) *hub.Made {
	if l.byHost {
		return l.hub.FindHost(strings.ToLower(strings.TrimSuffix(name, ".")))
	}
	if strings.HasPrefix(l.placeholder, placeholderLabel) {
		name = strings.ToLower(name)
	}
	return l.hub.Find(name)
}

var unknownTitles = map[string]string{
	codeStartFailed:         titles[codeStartFailed],
	codeUnknownService:      "There is no such service",
	codeRegistryUnavailable: "The service cannot be looked up",
	codeBadParam:            "The request asks for a service that there cannot be",
	codeTooManyServices:     "There are too many services of this kind",
}

// refuseUnknown answers a request that has no service. Nothing is kept of it, and
// nothing is counted by its name.
func (h *Handler) refuseUnknown(w http.ResponseWriter, r *http.Request, none *noService) {
	status, code, detail := none.status, none.code, none.detail
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Dict("usher", zap.String("error", code)))
	}
	w = answer.Seal(w)
	own := http.Header{"Cache-Control": {"no-store"}, answer.HeaderError: {code}}
	p := problem{Title: unknownTitles[code], Status: status, Detail: detail, Code: code}
	if status != http.StatusNotFound && status != http.StatusBadRequest {
		p.RetryAfter = int(retryUnknown.Seconds())
		own.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		replacer.Set(placeholderPrefix+"error", code)
		replacer.Set(placeholderPrefix+"error.detail", detail)
	}
	err := caddyhttp.Error(status, fmt.Errorf("%s: %s", code, detail))
	if h.shared.errors.answered(h.shared.server, w, r, err, own) {
		return
	}
	maps.Copy(w.Header(), own)
	writeProblem(w, r, p)
}
