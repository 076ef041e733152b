package process

import (
	"fmt"
	"os"
	"sync"
)

// child is a process that this Caddy started.
type child struct {
	pid int
	// startTime is never known here.
	startTime uint64
	process   *os.Process
	ended     chan struct{}
	left      chan struct{}

	mu    sync.Mutex
	words string
}

// fork starts a process.
func fork(l launch) (*child, error) {
	p, err := os.StartProcess(l.path, l.argv, &os.ProcAttr{Dir: l.dir, Env: l.env, Files: l.files})
	if err != nil {
		return nil, err
	}
	c := &child{pid: p.Pid, process: p, ended: make(chan struct{}), left: make(chan struct{})}
	go c.await()
	return c, nil
}

func (c *child) await() {
	state, err := c.process.Wait()
	c.mu.Lock()
	c.words = "ended in an unknown way"
	if err == nil {
		c.words = fmt.Sprintf("exit status %d", state.ExitCode())
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

// stop kills: there is no gentler way on Windows.
func (c *child) stop(stopSignal) { c.kill() }

// kill ends the process through its handle.
func (c *child) kill() { _ = c.process.Kill() }

func (c *child) reap()  {}
func (c *child) close() {}
