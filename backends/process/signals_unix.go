//go:build unix

package process

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stopSignal is the signal that asks an instance to stop.
type stopSignal int32

// parseStopSignal reads the name of a signal, with or without SIG.
func parseStopSignal(name string) (stopSignal, error) {
	if name == "" {
		return stopSignal(unix.SIGTERM), nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	number := unix.SignalNum(full)
	switch number {
	case 0:
		return 0, fmt.Errorf("stop_signal %q is no signal of this system; use a name such as TERM, INT, QUIT or USR1", name)
	case unix.SIGSTOP, unix.SIGCONT, unix.SIGTSTP, unix.SIGCHLD, unix.SIGTTIN, unix.SIGTTOU:
		return 0, fmt.Errorf("stop_signal %s does not ask a process to end; use a signal such as TERM, INT, QUIT or USR1", name)
	}
	return stopSignal(number), nil
}

// String returns the name of the signal.
func (s stopSignal) String() string { return unix.SignalName(syscall.Signal(s)) }
