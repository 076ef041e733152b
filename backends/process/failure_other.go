//go:build unix && !linux

package process

import "golang.org/x/sys/unix"

const rlimitProcesses = unix.RLIMIT_NPROC

// processGroupLimit has nothing to say: control groups are Linux's.
func processGroupLimit() string { return "" }
