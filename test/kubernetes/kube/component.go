//go:build linux

package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// A Component is one process of the cluster, which a test may stop, freeze and
// start again.
type Component struct {
	Name string

	netns string // of the node; "" is the one that the tests run in
	args  []string
	log   string

	cmd  *exec.Cmd
	done chan struct{}
}

func (c *Cluster) component(name, netns string, args ...string) *Component {
	return &Component{Name: name, netns: netns, args: args, log: filepath.Join(c.Dir, "log", name+".log")}
}

// Start starts the process. It does not wait until it is of any use.
func (p *Component) Start() error {
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := p.args
	if p.netns != "" {
		// Not `ip netns exec`, which puts another /sys over the cgroups.
		args = append([]string{"nsenter", "--net=/run/netns/" + p.netns}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// What is typed at the terminal is not for the components.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	p.cmd, p.done = cmd, done
	return nil
}

// Kill ends the process at once and waits for its end.
func (p *Component) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Freeze lets the process stand still: it keeps its connections, and answers
// nothing.
func (p *Component) Freeze() error { return harness.Freeze(p.cmd.Process) }

// Thaw lets it go on.
func (p *Component) Thaw() error { return harness.Thaw(p.cmd.Process) }

func (p *Component) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Log returns the end of what the component wrote.
func (p *Component) Log(lines int) string {
	data, _ := os.ReadFile(p.log)
	all := strings.SplitAfter(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

// await polls until something has come up: it gives up when time is over or
// when one of the components that it depends on has ended.
func await(timeout time.Duration, what string, ready func() bool, needs ...*Component) error {
	deadline := time.Now().Add(timeout)
	for !ready() {
		for _, p := range needs {
			if !p.running() {
				return fmt.Errorf("%s has ended:\n%s", p.Name, p.Log(20))
			}
		}
		if time.Now().After(deadline) {
			var logs strings.Builder
			for _, p := range needs {
				fmt.Fprintf(&logs, "\n%s:\n%s", p.Name, p.Log(20))
			}
			return fmt.Errorf("%s did not come up within %s%s", what, timeout, logs.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
