package process

import (
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// prepareThread gives the thread that forks what children shall inherit: no
// ambient capabilities, no blocked signals, and no open files.
func prepareThread() {
	// The errors are those of kernels that do not know the call yet, and of a
	// mask that cannot be bad.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)

	// Go opens everything so that children do not inherit it, but what Caddy
	// itself inherited they would: listeners of socket activation, which would
	// then stay open for as long as the instance runs.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)

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
