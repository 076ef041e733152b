package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// tcpSocket is a TCP socket of this machine, as the kernel shows it to
// everyone.
type tcpSocket struct {
	inode uint32
	uid   uint32 // the user that made it
}

// name is the socket's name in /proc.
func (s tcpSocket) name() string { return strconv.FormatUint(uint64(s.inode), 10) }

// inodes is the set of this socket alone.
func (s tcpSocket) inodes() map[string]bool { return map[string]bool{s.name(): true} }

// errNoSocket tells that there is no such socket.
var errNoSocket = errors.New("no such socket")

// findListener returns the socket that takes connections to an address. Asking
// the kernel for this one socket costs a few microseconds however many
// connections there are. Where that is not possible, the tables in /proc tell.
func findListener(address netip.AddrPort) (tcpSocket, error) {
	s, err := findSocket(address, netip.AddrPort{})
	if err == nil || errors.Is(err, errNoSocket) {
		return s, err
	}
	return listenerInTables(address)
}

// findSocket asks the kernel for the socket at local with the given remote
// address. Without a remote address it is the one that listens.
func findSocket(local, remote netip.AddrPort) (tcpSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return tcpSocket{}, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, socketQuestion(local, remote), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return tcpSocket{}, os.NewSyscallError("sendto", err)
	}
	// The kernel has answered before the question returns.
	answer := make([]byte, 1024)
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT)
	if err != nil {
		return tcpSocket{}, os.NewSyscallError("recvfrom", err)
	}
	return socketAnswer(answer[:n])
}

// The layout of questions and answers: linux/netlink.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20

	sizeofQuestion = unix.SizeofNlMsghdr + 8 + sizeofSocketID
	sizeofSocketID = 48
	sizeofAnswer   = unix.SizeofNlMsghdr + 4 + sizeofSocketID + 20

	offsetID    = unix.SizeofNlMsghdr + 8
	offsetUID   = sizeofAnswer - 8
	offsetInode = sizeofAnswer - 4
)

func socketQuestion(local, remote netip.AddrPort) []byte {
	m := make([]byte, sizeofQuestion)
	native := binary.NativeEndian
	native.PutUint32(m[0:], sizeofQuestion)
	native.PutUint16(m[4:], sockDiagByFamily)
	native.PutUint16(m[6:], unix.NLM_F_REQUEST)

	ip := local.Addr().Unmap()
	m[16] = unix.AF_INET
	if ip.Is6() {
		m[16] = unix.AF_INET6
	}
	m[17] = unix.IPPROTO_TCP
	native.PutUint32(m[20:], ^uint32(0)) // in any state

	id := m[offsetID:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], ip.AsSlice())
	if remote.IsValid() {
		copy(id[20:36], remote.Addr().Unmap().AsSlice())
	}
	// No cookie: any socket of these addresses.
	native.PutUint64(id[40:], ^uint64(0))
	return m
}

func socketAnswer(m []byte) (tcpSocket, error) {
	native := binary.NativeEndian
	if len(m) < unix.SizeofNlMsghdr+4 {
		return tcpSocket{}, errors.New("the kernel's answer about a socket is too short")
	}
	switch kind := native.Uint16(m[4:]); {
	case kind == unix.NLMSG_ERROR:
		errno := unix.Errno(-int32(native.Uint32(m[unix.SizeofNlMsghdr:])))
		if errno == unix.ENOENT {
			return tcpSocket{}, errNoSocket
		}
		return tcpSocket{}, os.NewSyscallError("sock_diag", errno)
	case kind != sockDiagByFamily || len(m) < sizeofAnswer:
		return tcpSocket{}, fmt.Errorf("the kernel's answer about a socket is of the unknown kind %d", kind)
	}
	return tcpSocket{inode: native.Uint32(m[offsetInode:]), uid: native.Uint32(m[offsetUID:])}, nil
}

// listenerInTables looks the listening socket up in /proc. One that listens on
// the very address goes before one that listens on all.
//
// Where no socket of IPv6 listens, the kernel goes through every connection of
// this machine to find that out. So its table is only read if that of IPv4 does
// not have the port. A socket of IPv4 never takes connections to an address of
// IPv6.
func listenerInTables(address netip.AddrPort) (tcpSocket, error) {
	var all *tcpSocket
	tables := []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"}
	if address.Addr().Unmap().Is6() {
		tables = tables[1:]
	}
	for _, table := range tables {
		var exact *tcpSocket
		err := eachListener(table, func(l listeningSocket) {
			switch {
			case l.address.Port() != address.Port():
			case l.address.Addr().Unmap() == address.Addr().Unmap():
				exact = &l.tcpSocket
			case l.address.Addr().Unmap().IsUnspecified():
				all = &l.tcpSocket
			}
		})
		switch {
		case exact != nil:
			return *exact, nil
		case all != nil:
			return *all, nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return tcpSocket{}, err
		}
	}
	return tcpSocket{}, errNoSocket
}
