//go:build !linux

package marathonsim

import "syscall"

// processAttributes puts a task into a process group of its own. Elsewhere
// than on Linux a simulator that is killed leaves its tasks behind.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
