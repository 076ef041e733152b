package process

import (
	"os"

	"golang.org/x/sys/unix"
)

// prepareThread gives the thread that forks what children shall inherit: no
// ambient capabilities, and no blocked signals.
func prepareThread() {
	// The errors are those of kernels that have no ambient capabilities, so
	// there is nothing to inherit, and of a mask that cannot be bad.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)

	// Signals that were ignored already when Caddy was started are not known
	// to os/signal; the kernel knows them.
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return
	}
	ignored := statusMask(string(status), "SigIgn")
	for sig := 1; sig <= lastPlainSignal; sig++ {
		if ignored&(1<<(sig-1)) != 0 {
			catch(sig)
		}
	}
}
