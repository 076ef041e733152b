package admin

import (
	"net/http"
	"strings"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/registryapi"
)

// serveSplits answers calls below /usher/splits; rest are the parts of the path after
// that.
func serveSplits(w http.ResponseWriter, r *http.Request, rest []string) error {
	h := hub.Latest.Load()
	allowed := []string{http.MethodGet}
	switch {
	case len(rest) > 1 || len(rest) == 1 && rest[0] == "":
		return answer.ApiError(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	case len(rest) == 1:
		allowed = append(allowed, http.MethodPut, http.MethodDelete)
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	switch {
	case method == http.MethodGet && len(rest) == 0:
		all := []*hub.SplitView{}
		if h != nil {
			all = h.Splits()
		}
		return answer.WriteJSON(w, all)
	case len(rest) == 1 && h == nil:
		return answer.ApiError(http.StatusNotFound, "there is no split %s", rest[0])
	case method == http.MethodGet:
		v, err := h.Split(rest[0])
		return writeSplit(w, v, err)
	case method == http.MethodPut && len(rest) == 1:
		return changeSplit(w, r, h, rest[0])
	case method == http.MethodDelete && len(rest) == 1:
		return resetSplit(w, r, h, rest[0])
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return answer.ApiError(http.StatusMethodNotAllowed, "%s is answered to %s, not to %s", r.URL.Path, strings.Join(allowed, ", "), r.Method)
}

// byAdmin is whom the log names.
const byAdmin = "the admin API"

// changeSplit sets the weights of all sides.
func changeSplit(w http.ResponseWriter, r *http.Request, h *hub.Hub, name string) error {
	var body struct {
		Weights map[string]int `json:"weights"`
	}
	if err := answer.ReadBody(r, &body); err != nil {
		return err
	}
	if body.Weights == nil {
		return answer.ApiError(http.StatusBadRequest, "the body has no weights: send {\"weights\": {\"<service>\": <weight>, ...}}, or DELETE to go back to those of the configuration")
	}
	v, err := h.SetSplit(r.Context(), hub.SplitChange{Name: name, Weights: body.Weights, By: byAdmin, IfMatch: r.Header.Get("If-Match")})
	return writeSplit(w, v, err)
}

// resetSplit goes back to the weights of the configuration.
func resetSplit(w http.ResponseWriter, r *http.Request, h *hub.Hub, name string) error {
	if err := answer.NoBody(r); err != nil {
		return err
	}
	v, err := h.SetSplit(r.Context(), hub.SplitChange{Name: name, By: byAdmin, IfMatch: r.Header.Get("If-Match")})
	return writeSplit(w, v, err)
}

// writeSplit answers with a split, its ETag in the header, or with the error.
func writeSplit(w http.ResponseWriter, v *hub.SplitView, err error) error {
	if err != nil {
		return registryapi.Failure(w, err)
	}
	w.Header().Set("ETag", v.ETag())
	return answer.WriteJSON(w, v)
}
