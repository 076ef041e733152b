package caddymodule

import (
	"strings"

	"go.uber.org/zap/zapcore"

	"github.com/caddy-usher/usher/reserver"
)

const (
	placeholderPrefix = "http.usher."

	// placeholderRequest is no placeholder for users: it gives a handler
	// `usher` the request of the one around it.
	placeholderRequest = placeholderPrefix + "\x00request"
)

// placeholder implements the placeholders {http.usher.*}. While a handler
// `usher` inside of this one has the request, they are of that one.
func (q *request) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, placeholderPrefix)
	if !ok {
		return nil, false
	}
	for q.inner != nil {
		q = q.inner
	}
	if key == placeholderRequest {
		return q, true
	}
	switch name {
	case "service":
		return q.service.Name, true
	case "split":
		return q.split(), true
	case "wait_ms":
		return q.waited.Milliseconds(), true
	case "cold":
		return q.cold, true
	case "session":
		return q.session().String(), true
	case "address":
		return q.address, true
	case "instance", "revision":
		switch {
		case q.instance == nil:
			return "", true
		case name == "instance":
			return q.instance.ID, true
		}
		return q.instance.Revision, true
	case "error", "error.detail", "retry_after":
		switch {
		case q.why == nil:
			return "", true
		case name == "error":
			return q.why.code, true
		case name == "error.detail":
			return q.why.fullDetail, true
		}
		return q.why.retryAfter, true
	}
	return nil, false
}

// MarshalLogObject implements zapcore.ObjectMarshaler for the access log.
func (q *request) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if name := q.split(); name != "" {
		enc.AddString("split", name)
	}
	enc.AddString("service", q.service.Name)
	if q.instance != nil {
		enc.AddString("instance", q.instance.ID)
		enc.AddString("address", q.address)
	}
	enc.AddInt64("wait_ms", q.waited.Milliseconds())
	enc.AddBool("cold", q.cold)
	if s := q.session(); s != reserver.NoSession {
		enc.AddString("session", s.String())
	}
	if q.why != nil {
		enc.AddString("error", q.why.code)
	}
	return nil
}
