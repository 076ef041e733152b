package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// canCheckPeers tells that this system shows which process serves a socket.
const canCheckPeers = true

// peers is what is known of the sockets at which an instance is reached. An
// instance can lose its port to another program, and one that runs as another
// user owns the directory of its unix socket and can put a link to any socket
// there. So each new connection is looked at before anything is written to it.
type peers struct {
	mu sync.Mutex
	// known are the listening sockets that were found to be the instance's.
	known map[uint32]bool
	// own tells that one of them was of the instance's own user.
	own bool
}

// maxKnown bounds the listening sockets that are remembered: a server that
// makes new ones all the time is looked at again.
const maxKnown = 256

// checkPeer tells whether a connection that has just been made leads to the
// instance.
func (in *instance) checkPeer(conn net.Conn) error {
	switch remote := conn.RemoteAddr().(type) {
	case *net.UnixAddr:
		return in.checkUnixPeer(conn)
	case *net.TCPAddr:
		if in.passed != nil {
			return nil // nothing else can have this port while Usher has the socket
		}
		theirs := remote.AddrPort()
		socket, err := findListener(theirs)
		if errors.Is(err, errNoSocket) {
			// It may have closed the socket with the connection accepted.
			if ours, ok := conn.LocalAddr().(*net.TCPAddr); ok {
				socket, err = findSocket(theirs, ours.AddrPort())
			}
		}
		if errors.Is(err, errNoSocket) {
			return fmt.Errorf("instance %s listens on %s no more", in.id, theirs)
		}
		if err != nil {
			return nil //nolint:nilerr // this machine does not show its sockets; the probe decides
		}
		return in.checkOwner(theirs.Port(), socket)
	}
	return nil
}

// checkUnixPeer asks the kernel which process listens on the socket that the
// connection has reached, whatever its name leads to.
func (in *instance) checkUnixPeer(conn net.Conn) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("instance %s: a connection of type %T does not show its peer", in.id, conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("instance %s: looking at the peer of a connection: %w", in.id, err)
	}
	var peer *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, optErr); err != nil {
		return fmt.Errorf("instance %s: looking at the peer of a connection: %w", in.id, err)
	}
	if peer.Uid == in.uid {
		return nil
	}
	// An instance with Caddy's own rights may have given some of them up.
	if int(in.uid) == os.Geteuid() && in.has(int(peer.Pid)) && slices.Contains(uidsOf(int(peer.Pid)), peer.Uid) {
		return nil
	}
	return fmt.Errorf("the socket %s leads to a socket of %s, process %d, and not to instance %s, which runs as %s: nothing is sent there; the instance may have put a link in its place",
		in.socket, userWords(peer.Uid), peer.Pid, in.id, userWords(in.uid))
}

// confirmListener tells whether the instance listens on its port, once a probe
// has connected.
func (in *instance) confirmListener() error {
	address := in.told()
	socket, err := findListener(address)
	if err != nil {
		return nil //nolint:nilerr // it listens no more, which shows by itself, or it cannot be seen
	}
	return in.checkOwner(address.Port(), socket)
}

// checkOwner tells whether a listening socket is the instance's.
//
// It is if a process of the instance has it open. It is not if its user is
// another one than the instance's, or if it is open in a process that ran
// before the instance or is another instance. Where its processes cannot be
// seen, or were started later by the same user as a container runtime does it,
// it counts as the instance's.
func (in *instance) checkOwner(port uint16, s tcpSocket) error {
	in.peers.mu.Lock()
	known, own := in.peers.known[s.inode], in.peers.own
	in.peers.mu.Unlock()
	if known {
		return nil
	}
	mine, stranger := in.holders(s)
	switch {
	case mine:
		own = true
	case stranger != nil:
		return fmt.Errorf("port %d: %w; nothing is sent there; take the port out of the range of ports, or end that process", port, stranger)
	case s.uid == in.uid || in.runsAs(s.uid):
		own = true
	case s.uid == 0 && !own:
		// Root needs no port to read what others are sent; a container runtime
		// that the instance has asked opens the port like this.
	default:
		return fmt.Errorf("port %d is held by a process of %s, and not by instance %s, which runs as %s: nothing is sent there; take the port out of the range of ports, or end that process",
			port, userWords(s.uid), in.id, userWords(in.uid))
	}
	in.peers.mu.Lock()
	defer in.peers.mu.Unlock()
	if in.peers.known == nil || len(in.peers.known) >= maxKnown {
		in.peers.known = make(map[uint32]bool, 1)
	}
	in.peers.known[s.inode] = true
	in.peers.own = own
	return nil
}

// holders looks for the processes that have a socket open, as far as that can
// be seen: whether one is of the instance, and if not, why one cannot be.
func (in *instance) holders(s tcpSocket) (mine bool, stranger error) {
	inodes := s.inodes()
	if holdsSocket(in.child.pid, inodes) {
		return true, nil
	}
	for pid := range allPIDs() {
		if pid == in.child.pid || !holdsSocket(pid, inodes) {
			continue
		}
		stat, err := readStat(pid)
		if err != nil {
			continue
		}
		mark := variable(pid, varInstance)
		switch {
		case in.owns(stat, mark):
			return true, nil
		case isInstanceID(mark):
			stranger = fmt.Errorf("it is held by process %d of instance %s, and not by instance %s", pid, mark, in.id)
		case stat.startTime < in.child.startTime:
			stranger = fmt.Errorf("it is held by process %d, which ran before instance %s was started and is not part of it", pid, in.id)
		}
	}
	return false, stranger
}

// owns tells whether a process is part of the instance.
func (in *instance) owns(stat procStat, mark string) bool {
	leader := in.child.pid
	return mark == in.id || stat.group == leader || stat.session == leader || descends(stat.parent, leader)
}

// has tells whether a process is part of the instance.
func (in *instance) has(pid int) bool {
	stat, err := readStat(pid)
	return err == nil && (pid == in.child.pid || in.owns(stat, variable(pid, varInstance)))
}

// runsAs tells whether a process of the instance runs as a user: programs that
// are started with more rights than they need switch to another one.
func (in *instance) runsAs(uid uint32) bool {
	for pid := range allPIDs() {
		if slices.Contains(uidsOf(pid), uid) && in.has(pid) {
			return true
		}
	}
	return false
}

// uidsOf returns the users of a process: real, effective, saved, and that of
// its files.
func uidsOf(pid int) (uids []uint32) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if numbers, ok := strings.CutPrefix(line, "Uid:"); ok {
			for number := range strings.FieldsSeq(numbers) {
				if uid, err := strconv.ParseUint(number, 10, 32); err == nil {
					uids = append(uids, uint32(uid))
				}
			}
		}
	}
	return uids
}

// userWords names a user.
func userWords(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return "user " + u.Username
	}
	return "user " + number
}

// pin returns an address at which nothing but the instance can be reached until
// release is called, for a connection that Usher does not make itself and
// cannot look at.
func (in *instance) pin() (address string, release func(), err error) {
	if in.socket == "" {
		_, address = in.where()
		if in.passed != nil {
			return address, func() {}, nil
		}
		return address, func() {}, in.confirmListener()
	}
	if int(in.uid) == os.Geteuid() {
		return in.socket, func() {}, nil // it can reach no more by itself than Caddy
	}
	// The descriptor stays with this one socket, whatever its name becomes.
	fd, err := unix.Open(in.socket, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("the socket of instance %s: %w", in.id, &os.PathError{Op: "open", Path: in.socket, Err: err})
	}
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("the socket of instance %s: %w", in.id, os.NewSyscallError("fstat", err))
	}
	if info.Mode&unix.S_IFMT != unix.S_IFSOCK || info.Uid != in.uid {
		unix.Close(fd)
		return "", nil, fmt.Errorf("%s is no socket of instance %s, which runs as %s: nothing is sent there; the instance may have put a link or a file of %s in its place",
			in.socket, in.id, userWords(in.uid), userWords(info.Uid))
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { unix.Close(fd) }, nil
}
