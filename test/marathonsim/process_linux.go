package marathonsim

import "syscall"

// processAttributes puts a task into a process group of its own, and lets it
// die with the simulator.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
