package caddymodule

import (
	"crypto/sha256"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// originalURI is what was asked for, before anything was rewritten.
func originalURI(r *http.Request) string {
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return orig.RequestURI
	}
	return r.RequestURI
}

// keyOf returns the key of the visitor that sent r. The page names its own URL in
// the form of urlReference, so that is the form that counts.
func keyOf(r *http.Request) hub.VisitorKey {
	h := sha256.New()
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	for _, part := range []string{ip, r.UserAgent(), r.Host, answer.UrlReference(originalURI(r))} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hub.VisitorKey(h.Sum(nil))
}
