//go:build unix

package process

import (
	"os"
	"os/signal"
	"syscall"
)

// lastPlainSignal is the last signal before those of real time.
const lastPlainSignal = 31

// caught receives the signals that Caddy wants to ignore. It has no
// reader: signals that find it full are dropped.
var caught = make(chan os.Signal, 1)

// catch makes Caddy catch a signal that it ignores. To Caddy that is the same,
// but a child inherits ignored signals, while caught ones are set back to
// their default when it is executed. Caddy ignores SIGPIPE.
func catch(sig int) { signal.Notify(caught, syscall.Signal(sig)) }

// defaultSignals catches what has come to be ignored since the last start.
func defaultSignals() {
	for sig := 1; sig <= lastPlainSignal; sig++ {
		if signal.Ignored(syscall.Signal(sig)) {
			catch(sig)
		}
	}
}
