package registry

import (
	"errors"
	"fmt"
)

// Kind is the kind of an Error. Each has a status of HTTP.
type Kind int

const (
	// Invalid: the body, a name or a value is wrong. 400.
	Invalid Kind = iota + 1
	// Forbidden: the caller may not do this. 403.
	Forbidden
	// NotFound: there is no such service, or no such revision. 404.
	NotFound
	// Conflict: a name or a host belongs to another service. 409.
	Conflict
	// Stale: the service has changed, so the condition does not hold. 412.
	Stale
	// ConditionNeeded: a change of what exists needs If-Match. 428.
	ConditionNeeded
	// TooMany: a limit is reached. 429.
	TooMany
	// StoreFailed: the store did not do its work. The change may have been made or
	// not. 503.
	StoreFailed
)

// Status returns the status of HTTP for k.
func (k Kind) Status() int {
	switch k {
	case Invalid:
		return 400
	case Forbidden:
		return 403
	case NotFound:
		return 404
	case Conflict:
		return 409
	case Stale:
		return 412
	case ConditionNeeded:
		return 428
	case TooMany:
		return 429
	default:
		return 503
	}
}

// Error is why an operation was not done. All operations of a Registry return errors
// of this type.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"` // for people; it holds no secret of a definition
	Err     error  `json:"-"`       // the cause, or nil; its text is part of Message
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of an error of this package, or 0.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}

// refuse returns an Error. format is as in fmt.Errorf.
func refuse(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Err: errors.Unwrap(err)}
}
