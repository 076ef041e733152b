package process

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is the main process of an instance. It leads a session of its own, so
// that it does not have Caddy's controlling terminal, and with it a process
// group. Of one that this Caddy forked neither the pid nor the id of the group
// can be given to another process until it is reaped; that is what makes signals to
// the group safe. One that an earlier Caddy forked is init's to reap, and gets
// its signals process by process, through pidfds.
type child struct {
	pid       int
	startTime uint64
	pidfd     *os.File

	// adopted says what belongs to the instance of an earlier Caddy; nil for a
	// child of this one. Guarded by mu until the process has ended.
	adopted *search

	mu     sync.Mutex
	reaped bool // or, if adopted, ended
}

// fork starts a process, on the thread that calls it.
func fork(l launch) (*child, error) {
	files := make([]uintptr, len(l.files))
	for i, f := range l.files {
		files[i] = f.Fd()
	}
	pidfd := -1
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd, Credential: l.account.credential()}
	if !l.keep {
		attr.Pdeathsig = syscall.SIGKILL
	}
	pid, _, err := syscall.StartProcess(l.path, l.argv, &syscall.ProcAttr{Dir: l.dir, Env: l.env, Files: files, Sys: attr})
	if err != nil {
		return nil, err
	}
	if getsOrphans() {
		// At once, before it starts others. An error means that a right is missing:
		// most processes without the limit are known in other ways.
		_ = setLineage(pid)
	}
	c := &child{pid: pid}
	if s, err := readStat(pid); err == nil {
		c.startTime = s.startTime
	}
	if pidfd < 0 {
		c.signalGroup(syscall.SIGKILL)
		c.reap()
		return nil, fmt.Errorf("pidfd: %w", unix.ENOSYS)
	}
	if err := c.hold(pidfd); err != nil {
		c.signalGroup(syscall.SIGKILL)
		c.reap()
		return nil, err
	}
	return c, nil
}

// hold takes the pidfd, and closes it if it cannot be watched.
func (c *child) hold(pidfd int) error {
	// Non-blocking is what lets the runtime's poller watch it.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return fmt.Errorf("pidfd: %w", err)
	}
	c.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	return nil
}

// wait returns true when the process has ended, and false when it was
// detached. It does not reap.
func (c *child) wait() bool {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	_ = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ended = err == nil && n > 0
		return ended
	})
	return ended
}

// detach makes wait return: Caddy exits, and the process stays.
func (c *child) detach() { _ = c.pidfd.SetReadDeadline(time.Unix(1, 0)) }

// status returns how the process ended, in words. It leaves the process
// unreaped.
func (c *child) status() string {
	if c.adopted != nil {
		return "exit status unknown (an earlier Caddy had started the process)"
	}
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return "ended in an unknown way"
		}
	}
	// For SIGCHLD the union after the three numbers, aligned to a word, holds
	// pid, uid and status.
	offset := 5 * unsafe.Sizeof(int32(0))
	if unsafe.Sizeof(uintptr(0)) == 8 {
		offset += unsafe.Sizeof(int32(0))
	}
	number := *(*int32)(unsafe.Add(unsafe.Pointer(&info), offset))
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	if info.Code == exited {
		return fmt.Sprintf("exit status %d", number)
	}
	words := "signal: " + syscall.Signal(number).String()
	if info.Code == dumped {
		words += " (core dumped)"
	}
	return words
}

// signalGroup sends a signal to the whole group, else to the process if it
// has left its group.
func (c *child) signalGroup(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.reaped:
		return
	case c.adopted != nil:
		c.adopted.signal(sig)
		return
	}
	if err := syscall.Kill(-c.pid, sig); err != nil {
		_ = syscall.Kill(c.pid, sig)
	}
}

// stop asks the group to end.
func (c *child) stop(sig stopSignal) { c.signalGroup(syscall.Signal(sig)) }

// kill ends the group.
func (c *child) kill() { c.signalGroup(syscall.SIGKILL) }

// reap takes the exit status away; from now on the pid is free.
func (c *child) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return
	}
	c.reaped = true
	if c.adopted != nil {
		return
	}
	var status syscall.WaitStatus
	for {
		// By pid, and never -1: Caddy may have other children.
		if _, err := syscall.Wait4(c.pid, &status, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// close lets go of the process.
func (c *child) close() { c.pidfd.Close() }
