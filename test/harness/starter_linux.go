package harness

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// starter starts all Caddys from one thread that lives as long as the tests:
// a test process that is killed or runs into its time-out takes its Caddys
// with it, and the signal for that is tied to the thread that forked.
var starter struct {
	once     sync.Once
	requests chan startRequest
	done     chan struct{}
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

func start(cmd *exec.Cmd) error {
	starter.once.Do(func() {
		starter.requests, starter.done = make(chan startRequest), make(chan struct{})
		go func() {
			defer close(starter.done)
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			for r := range starter.requests {
				r.result <- r.cmd.Start()
			}
		}()
	})
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	r := startRequest{cmd, make(chan error)}
	starter.requests <- r
	return <-r.result
}

// stopStarter ends the thread, and with it any Caddy that still runs.
func stopStarter() {
	if starter.requests != nil {
		close(starter.requests)
		<-starter.done
	}
}
