package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// canPassListener tells that `listen fd` works on this system.
const canPassListener = true

// passedListener is Usher's copy of a listening socket that an instance got.
// It is blocking, as one from systemd is, so it is not of package net.
type passedListener struct {
	mu   sync.Mutex
	file *os.File // nil when closed
}

// listenOn makes a listening socket.
func listenOn(port int) (*passedListener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	}
	if err == nil {
		// The kernel cuts the backlog to net.core.somaxconn.
		err = os.NewSyscallError("listen", unix.Listen(fd, 1<<16-1))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &passedListener{file: os.NewFile(uintptr(fd), "listener")}, nil
}

// close closes Usher's copy. Once the process has ended too, connections are
// refused.
func (l *passedListener) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// accepted returns nil when no connection waits to be accepted. With a probe
// that has connected that means: the process has accepted it. The connect
// alone proves nothing, the kernel answers it.
func (l *passedListener) accepted() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errEnded
	}
	info, err := unix.GetsockoptTCPInfo(int(l.file.Fd()), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("asking for the waiting connections of the passed socket: %w", err)
	}
	// Of a listening socket this is the length of its queue.
	if info.Unacked > 0 {
		return scaler.ErrNotYet
	}
	return nil
}

// errEnded answers questions about an instance that is gone.
var errEnded = errors.New("the instance has ended")

// passShell sets LISTEN_PID, which is not known before the fork, and becomes
// the command.
const passShell = "/bin/sh"

// passArgs returns the arguments of passShell that run a command so.
func passArgs(path string, argv []string) []string {
	const script = `LISTEN_PID=$$ exec "$@"`
	return append([]string{passShell, "-c", script, argv[0], path}, argv[1:]...)
}

// passVariables are the variables of the protocol that are known before.
func passVariables(service string) map[string]string {
	return map[string]string{"LISTEN_FDS": strconv.Itoa(1), "LISTEN_FDNAMES": service}
}
