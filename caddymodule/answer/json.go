package answer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// adminBodyMax bounds the body of a call.
const MaxBody = 64 << 10

func ApiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// OperationError gives an error of an operation on a service or a task its status. It
// returns nil for nil.
func OperationError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, async.ErrNotFound):
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: err}
	case errors.Is(err, hub.ErrConflict), errors.Is(err, async.ErrFinished), errors.Is(err, async.ErrUnfinished):
		return caddy.APIError{HTTPStatus: http.StatusConflict, Err: err}
	}
	return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
}

// NoBody accepts an empty body, or an empty object.
func NoBody(r *http.Request) error {
	return ReadBody(r, &struct{}{})
}

// readBody decodes a body, if there is one, into v.
func ReadBody(r *http.Request, v any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return ApiError(http.StatusBadRequest, "reading the body: %w", err)
	}
	if len(b) > MaxBody {
		return ApiError(http.StatusBadRequest, "the body is longer than %d bytes", MaxBody)
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		return nil
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return ApiError(http.StatusBadRequest, "the body is not as expected: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return ApiError(http.StatusBadRequest, "the body goes on after its object")
	}
	return nil
}

func WriteJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(ForeignJSON(b), '\n'))
	return nil
}

// answerError answers as the admin API does.
func AnswerError(w http.ResponseWriter, err error) error {
	status := http.StatusInternalServerError
	if api, ok := errors.AsType[caddy.APIError](err); ok {
		status, err = api.HTTPStatus, api.Err
	}
	body, err := json.Marshal(map[string]string{"error": err.Error()})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", TypeJSON)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(ForeignJSON(body), '\n'))
	return nil
}
