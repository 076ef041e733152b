package process

import (
	"fmt"
	"strings"
)

// stopSignal is always a kill: Windows has no signals.
type stopSignal int32

// parseStopSignal takes the two names that come nearest to what happens.
func parseStopSignal(name string) (stopSignal, error) {
	switch strings.TrimPrefix(strings.ToUpper(name), "SIG") {
	case "", "TERM", "KILL":
		return 9, nil
	}
	return 0, fmt.Errorf("stop_signal %q does not exist on Windows, where a process can only be killed; leave it out", name)
}

// String returns the name of the signal.
func (stopSignal) String() string { return "SIGKILL" }
