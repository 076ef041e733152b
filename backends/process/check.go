package process

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/caddy-usher/usher/scaler"
)

// state is what became of a configuration on this machine. It can change while
// Caddy runs: a missing file appears, a restart reads files anew.
type state struct {
	mu   sync.Mutex
	plan *plan
}

func (s *state) current() *plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan
}

func (s *state) set(p *plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = p
}

// complete returns the plan. If something was missing for it, it is looked for
// again.
func (b *Backend) complete() *plan {
	p := b.state.current()
	if p.missing == nil {
		return p
	}
	again, err := b.resolve()
	if err != nil {
		// What was missing is there, and is wrong.
		again = &plan{missing: &scaler.Failure{
			Reason: scaler.ReasonExec, ForGood: true, Short: "the configuration cannot be used", Err: err,
		}}
	}
	b.state.set(again)
	return again
}

// Refresh reads variables and files anew, and looks for the user again.
func (b *Backend) Refresh() error {
	p, err := b.resolve()
	if err != nil {
		return err
	}
	if p.missing != nil {
		return p.missing
	}
	b.state.set(p)
	return nil
}

// Check returns what is missing for a start, as far as that can be known
// before: a file, the user and the right to switch to it, the directory, the
// command, a place for sockets.
func (b *Backend) Check() *scaler.Failure {
	p := b.complete()
	if p.missing != nil {
		return p.missing
	}
	dir, dirKnown := p.dir.constant()
	if dirKnown {
		if f := checkDir(dir); f != nil {
			return f
		}
	}
	if f := p.account.checkRight(); f != nil {
		return f
	}
	command, commandKnown := p.command.constant()
	path, pathKnown := p.searchPath()
	if commandKnown && (dirKnown || filepath.IsAbs(command)) && (pathKnown || isPath(command)) {
		if _, f := findCommand(command, dir, path); f != nil {
			return f
		}
	}
	if p.listen == listenUnix {
		base, _ := socketBase()
		if err := checkSocketLength(base); err != nil {
			return &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "the name of the socket is too long", Err: err}
		}
	}
	return nil
}

// fileMissing is the failure of a file that the configuration names and that
// cannot be read.
func fileMissing(what string, err error) *scaler.Failure {
	f := &scaler.Failure{
		Reason: scaler.ReasonNotFound, ForGood: true, Short: "a file of the configuration is missing",
		Err: fmt.Errorf("%s cannot be read: %w; create it, or make it readable for Caddy's user", what, unwrapPath(err)),
	}
	if errors.Is(err, fs.ErrPermission) {
		f.Reason, f.Short = scaler.ReasonForbidden, "a file of the configuration cannot be read"
	}
	return f
}

// fileUnusable is the failure of a file that the configuration names and whose
// content cannot be used.
func fileUnusable(err error) error {
	if _, ok := errors.AsType[*scaler.Failure](err); ok {
		return err
	}
	return &scaler.Failure{
		Reason: scaler.ReasonExec, ForGood: true, Short: "a file of the configuration cannot be used", Err: err,
	}
}
