package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cpu returns the CPU that a process has used, its ended threads included, to
// the nanosecond: the ticks in /proc/PID/stat are too coarse for a process
// that waits.
func (p *process) cpu() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	// This is how clock_getcpuclockid(3) makes the id of the clock.
	err := unix.ClockGettime(int32(^p.pid())<<3|schedClock, &t)
	return time.Duration(t.Nano()), err
}

// endWithParent makes the kernel end a process when this one has ended,
// however it did.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
