package marathonsim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sigterm = syscall.SIGTERM
	sigkill = syscall.SIGKILL
	sigstop = syscall.SIGSTOP
	sigcont = syscall.SIGCONT
)

// A command is what a task runs.
type command struct {
	argv []string
	env  []string
	dir  string // the sandbox
}

// An exit is how a process ended.
type exit struct {
	status int
	signal string
}

func (x exit) String() string {
	if x.signal != "" {
		return "signal " + x.signal
	}
	return fmt.Sprintf("status %d", x.status)
}

// A launcher starts processes, and ends what it has started.
type launcher struct {
	dir   string
	queue chan func()
	done  chan struct{}

	mu      sync.Mutex
	closed  bool
	live    map[*process]struct{}
	waiters sync.WaitGroup
}

func newLauncher(dir string) *launcher {
	l := &launcher{dir: dir, queue: make(chan func(), 256), done: make(chan struct{}), live: map[*process]struct{}{}}
	go l.loop()
	return l
}

// loop starts processes from one thread that stays: a process is told to die
// with the thread that made it, so that a simulator which is killed leaves
// nothing behind.
func (l *launcher) loop() {
	defer close(l.done)
	runtime.LockOSThread()
	for f := range l.queue {
		f()
	}
}

// start starts a process in a group of its own. started gets it or an error;
// ended is called once when a started process has ended. Both are called from
// other goroutines.
func (l *launcher) start(c command, started func(*process, error), ended func(exit)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.waiters.Add(1)
	f := func() {
		p, err := l.run(c)
		if errors.Is(err, errClosed) {
			l.waiters.Done()
			return
		}
		started(p, err)
		if err != nil {
			l.waiters.Done()
			return
		}
		go func() {
			defer l.waiters.Done()
			x := p.wait()
			l.mu.Lock()
			delete(l.live, p)
			l.mu.Unlock()
			ended(x)
		}()
	}
	// The engine must not wait for the thread: a start takes milliseconds.
	select {
	case l.queue <- f:
	default:
		go func() { l.queue <- f }()
	}
}

var errClosed = errors.New("the simulator ends")

func (l *launcher) run(c command) (*process, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	stdout, err := os.OpenFile(filepath.Join(c.dir, "stdout"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := os.OpenFile(filepath.Join(c.dir, "stderr"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Dir, cmd.Env = c.dir, c.env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = processAttributes()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, pid: cmd.Process.Pid}
	l.live[p] = struct{}{}
	return p, nil
}

// close kills what runs, waits for its end, and looks for what a task has
// forked away: such a process carries the sandbox in its environment.
func (l *launcher) close() {
	l.mu.Lock()
	l.closed = true
	for p := range l.live {
		p.signal(sigkill)
	}
	l.mu.Unlock()
	l.waiters.Wait()
	close(l.queue)
	<-l.done
	l.killStrays()
}

func (l *launcher) killStrays() {
	mark := "MESOS_SANDBOX=" + l.dir + "/"
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil {
			continue
		}
		proc, err := os.FindProcess(pid) // holds on to this very process
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(dir + "/environ")
		if err == nil && containsVariable(string(environ), mark) {
			_ = proc.Kill()
		}
		_ = proc.Release()
	}
}

func containsVariable(environ, prefix string) bool {
	for kv := range strings.SplitSeq(environ, "\x00") {
		if strings.HasPrefix(kv, prefix) {
			return true
		}
	}
	return false
}

// A process is the leader of a task's process group.
type process struct {
	cmd *exec.Cmd
	pid int

	mu    sync.Mutex
	ended bool
}

// signal goes to the whole group.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		_ = syscall.Kill(-p.pid, s)
	}
}

// wait waits for the end, and kills what is left of the group, as an agent
// destroys the container of a task that has ended. It does so before the
// leader is reaped: until then no other process can get its pid.
func (p *process) wait() exit {
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	_ = syscall.Kill(-p.pid, sigkill)
	_ = p.cmd.Wait()
	status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return exit{signal: signalName(status.Signal())}
	}
	return exit{status: status.ExitStatus()}
}

// signalName is the signal in the words of Mesos, which are those of
// strsignal.
func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGKILL:
		return "Killed"
	case syscall.SIGTERM:
		return "Terminated"
	case syscall.SIGSEGV:
		return "Segmentation fault"
	case syscall.SIGABRT:
		return "Aborted"
	}
	return s.String()
}
