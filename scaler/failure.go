package scaler

import (
	"errors"
	"fmt"
)

// ErrNotYet is returned by a Confirmer that cannot tell yet.
var ErrNotYet = errors.New("not confirmed yet")

// ErrLater is returned by Scale where the order is right, and the platform has
// to come to rest before it can be carried out.
var ErrLater = errors.New("the platform has to come to rest first")

// Reason classifies failures. Reasons are used as values of a metric's
// label, so their number is fixed.
type Reason string

// The reasons for a failure.
const (
	ReasonNotFound      Reason = "not_found"     // the resource, directory or user does not exist
	ReasonForbidden     Reason = "forbidden"     // Usher may not do this
	ReasonExec          Reason = "exec"          // the command cannot be executed
	ReasonExit          Reason = "exit"          // the instance ended by itself
	ReasonTimeout       Reason = "timeout"       // not ready within start_timeout
	ReasonImage         Reason = "image"         // the image cannot be had
	ReasonCrashLoop     Reason = "crash_loop"    // the platform gave up restarting it for now
	ReasonUnschedulable Reason = "unschedulable" // the platform has no place for it
	ReasonQuota         Reason = "quota"         // a limit of the platform or machine was hit
	ReasonConflict      Reason = "conflict"      // another program is changing the same thing
	ReasonPlatform      Reason = "platform"      // the platform cannot be asked, or answered nonsense
)

// A Failure is a typed error of a backend: what kind it is, whether trying
// again can help, and words for three audiences.
type Failure struct {
	// Reason classifies the failure.
	Reason Reason

	// ForGood is true when trying again cannot help until a person changes
	// something: the command does not exist, access is forbidden.
	ForGood bool

	// Short is the short fact that clients may see, e.g. "exit status 127".
	// It holds no paths, arguments, output or secrets.
	Short string

	// Detail is for operators: the platform's message, the last lines of
	// output, the limit that was hit and what to do about it. May be empty.
	Detail string

	// Err is the underlying error, if there is one.
	Err error
}

// Error returns all that is known, readable, in one line or more.
func (f *Failure) Error() string {
	s := f.Short
	if s == "" {
		s = string(f.Reason)
	}
	if f.Err != nil {
		s = fmt.Sprintf("%s: %v", s, f.Err)
	}
	if f.Detail != "" {
		s += ": " + f.Detail
	}
	return Readable(s)
}

// InWords returns a failure that says the same as f and has no underlying error, so
// that it can be encoded. f may be nil.
func (f *Failure) InWords() *Failure {
	if f == nil || f.Err == nil {
		return f
	}
	told := *f
	told.Err, told.Detail = nil, f.Err.Error()
	if f.Detail != "" {
		told.Detail += ": " + f.Detail
	}
	return &told
}

// Unwrap returns the underlying error.
func (f *Failure) Unwrap() error { return f.Err }

// AsFailure returns err as a *Failure. An error of another type becomes one
// with ReasonPlatform, to be tried again. It returns nil for nil.
func AsFailure(err error) *Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Reason: ReasonPlatform, Short: "the platform did not carry out the order", Err: err}
}
