//go:build unix && !linux

package process

import (
	"fmt"
	"sync"
	"syscall"
)

// child is a process that this Caddy forked, the leader of a session and of
// a process group of its own. It is reaped the moment it ends; the rest of its group is killed in
// that same moment.
type child struct {
	pid int
	// startTime is never known here.
	startTime uint64
	ended     chan struct{} // closed when the process was reaped
	left      chan struct{} // closed when Caddy lets it run on

	mu     sync.Mutex
	reaped bool
	words  string
}

// fork starts a process.
func fork(l launch) (*child, error) {
	files := make([]uintptr, len(l.files))
	for i, f := range l.files {
		files[i] = f.Fd()
	}
	attr := &syscall.SysProcAttr{Setsid: true, Credential: l.account.credential()}
	pid, _, err := syscall.StartProcess(l.path, l.argv, &syscall.ProcAttr{Dir: l.dir, Env: l.env, Files: files, Sys: attr})
	if err != nil {
		return nil, err
	}
	c := &child{pid: pid, ended: make(chan struct{}), left: make(chan struct{})}
	go c.await()
	return c, nil
}

// await ends with the process, not before: there is no way to interrupt it.
func (c *child) await() {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(c.pid, &status, 0, nil)
	for err == syscall.EINTR {
		_, err = syscall.Wait4(c.pid, &status, 0, nil)
	}
	c.mu.Lock()
	c.reaped = true
	_ = syscall.Kill(-c.pid, syscall.SIGKILL)
	switch {
	case err != nil:
		c.words = "ended in an unknown way"
	case status.Signaled():
		c.words = "signal: " + status.Signal().String()
	default:
		c.words = fmt.Sprintf("exit status %d", status.ExitStatus())
	}
	c.mu.Unlock()
	close(c.ended)
}

// wait returns true when the process has ended, and false when it was
// detached.
func (c *child) wait() bool {
	select {
	case <-c.ended:
		return true
	case <-c.left:
		return false
	}
}

// detach makes wait return: Caddy exits, and the process stays.
func (c *child) detach() { close(c.left) }

// status returns how the process ended, in words.
func (c *child) status() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.words
}

func (c *child) signalGroup(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = syscall.Kill(-c.pid, sig)
	}
}

// stop asks the group to end.
func (c *child) stop(sig stopSignal) { c.signalGroup(syscall.Signal(sig)) }

// kill ends the group.
func (c *child) kill() { c.signalGroup(syscall.SIGKILL) }

func (c *child) reap()  {}
func (c *child) close() {}
