package hub

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// What an operator can do with a service.
const (
	VerbWake    = "wake"
	VerbSleep   = "sleep"
	VerbSuspend = "suspend"
	VerbResume  = "resume"
	verbRestart = "restart"
)

// ErrConflict marks errors that say that the service is in no state, or of no
// kind, for what was asked.
var ErrConflict = errors.New("conflict")

// conflict is an error that errors.Is finds to be errConflict.
type conflict string

// Error implements error.
func (c conflict) Error() string { return string(c) }

// Is implements the interface that errors.Is looks for.
func (conflict) Is(target error) bool { return target == ErrConflict }

// IsOperation says whether operate knows the verb.
func IsOperation(verb string) bool {
	switch verb {
	case VerbWake, VerbSleep, VerbSuspend, VerbResume, verbRestart:
		return true
	}
	return false
}

// Operate does with s what an operator asks for, at whichever Caddy of a cluster
// that can be done. The reason is used by suspend alone, and may be empty.
func (h *Hub) Operate(ctx context.Context, s *Service, verb, reason string) error {
	if s.follows() && verb != VerbSuspend && verb != VerbResume && IsOperation(verb) {
		_, err := s.shared.askLeader(ctx, question{Service: s.Name, Do: verb})
		return err
	}
	return h.operateHere(ctx, s, verb, reason)
}

// operateHere does it at this Caddy.
func (h *Hub) operateHere(ctx context.Context, s *Service, verb, reason string) error {
	switch verb {
	case VerbWake:
		if s.Loop.Status().State == control.Suspended {
			return conflict(fmt.Sprintf("service %s is suspended: resume it first", s.Name))
		}
		s.Loop.Wake()
		return nil
	case VerbSleep:
		if needing := s.Loop.Sleep(); needing != nil {
			return h.neededConflict(s, needing)
		}
		return nil
	case VerbSuspend:
		if reason == "" {
			reason = "suspended by an operator"
		}
		return h.Suspend(ctx, s, reason)
	case VerbResume:
		return h.resume(ctx, s)
	case verbRestart:
		return s.Loop.Restart()
	}
	return fmt.Errorf("there is nothing like %q to do with a service", verb)
}

// neededConflict says that s stays awake because others need it, and what to do.
func (h *Hub) neededConflict(s *Service, needing []string) error {
	said := func(by, what string) error {
		return conflict(fmt.Sprintf("%s is needed by %s, %s", s.Name, by, what))
	}
	if len(needing) > 1 {
		last := len(needing) - 1
		return said(strings.Join(needing[:last], ", ")+" and "+needing[last], "which have instances or want some: put them to sleep first")
	}
	name, state := needing[0], control.Awake
	if by := h.Service(name); by != nil {
		state = by.Loop.Status().State
	}
	if state == control.Asleep || state == control.Suspended {
		return said(name, "whose instances have not ended yet: try again in a moment")
	}
	return said(name, fmt.Sprintf("which is %s: put %s to sleep first", state, name))
}

// NoOutput says why nothing is kept of the output of a service, or returns nil.
func (s *Service) NoOutput() error {
	d := s.Current()
	switch teller, ok := d.Backend.(scaler.OutputTeller); {
	case !ok:
		return conflict(fmt.Sprintf("Usher does not see the output of service %s: its backend is %s, so ask that platform", s.Name, d.BackendType()))
	case !teller.TellsOutput():
		return conflict(fmt.Sprintf("the output of service %s is discarded: `output discard` stands in its backend", s.Name))
	}
	return nil
}
