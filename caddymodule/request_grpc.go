package caddymodule

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddy-usher/usher/caddymodule/answer"
)

// grpcTypes are the content types of gRPC, the longer ones first.
var grpcTypes = []string{"application/grpc-web-text", "application/grpc-web", "application/grpc"}

// grpcType returns the content type of an answer to a call of gRPC; "" if the
// request is none.
func grpcType(h http.Header) string {
	asked := h["Content-Type"]
	if len(asked) == 0 {
		return ""
	}
	for _, t := range grpcTypes {
		rest, ok := strings.CutPrefix(asked[0], t)
		if ok && (rest == "" || strings.IndexByte("+; ", rest[0]) >= 0) {
			return t
		}
	}
	return ""
}

// grpcUnavailable is the status UNAVAILABLE: clients that repeat calls repeat
// those that ended with it.
const grpcUnavailable = "14"

// answerGRPC answers a call of gRPC with trailers alone: its clients read the
// status from there, and the status of HTTP is always 200.
func answerGRPC(w http.ResponseWriter, contentType string, p problem) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Grpc-Status", grpcUnavailable)
	h.Set("Grpc-Message", grpcMessage(p.Title+": "+answer.ForeignLine(p.Detail)+" ("+p.Code+")"))
	w.WriteHeader(http.StatusOK)
}

// grpcMessage encodes a text as gRPC does it in a header.
func grpcMessage(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' || c == '%' {
			_, _ = fmt.Fprintf(&b, "%%%02X", c)
		} else {
			_ = b.WriteByte(c)
		}
	}
	return b.String()
}
