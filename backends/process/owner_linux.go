package process

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// unaccepted is how many connections to a passed socket wait to be accepted.
func unaccepted(port int) (n int) {
	_ = eachListener("/proc/self/net/tcp", func(l listeningSocket) {
		if l.address.Port() == uint16(port) && l.address.Addr().Unmap().IsLoopback() {
			n = l.waiting
		}
	})
	return n
}

// listeningSocket is a listening socket with what the tables in /proc say of
// it beside its owner.
type listeningSocket struct {
	tcpSocket
	address netip.AddrPort
	waiting int // connections
}

// eachListener goes through the listening sockets of a table of the kernel.
// They stand before all others, of which there may be very many.
func eachListener(table string, f func(listeningSocket)) error {
	file, err := os.Open(table)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Scan() // the heads of the columns
	for lines.Scan() {
		// sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode
		fields := strings.Fields(lines.Text())
		const listening = "0A"
		if len(fields) < 10 || fields[3] != listening {
			return nil
		}
		digits, hexPort, _ := strings.Cut(fields[1], ":")
		ip, ok := kernelAddress(digits)
		port, err0 := strconv.ParseUint(hexPort, 16, 16)
		// Of a listening socket the queue of what was received is this one.
		_, queue, _ := strings.Cut(fields[4], ":")
		waiting, err1 := strconv.ParseUint(queue, 16, 32)
		uid, err2 := strconv.ParseUint(fields[7], 10, 32)
		inode, err3 := strconv.ParseUint(fields[9], 10, 32)
		if !ok || err0 != nil || err1 != nil || err2 != nil || err3 != nil {
			return fmt.Errorf("%s has an unknown form", table)
		}
		f(listeningSocket{tcpSocket{uint32(inode), uint32(uid)}, netip.AddrPortFrom(ip, uint16(port)), int(waiting)})
	}
	return lines.Err()
}

// holdsSocket tells whether a process has one of the sockets open. One that
// may not be looked at counts as not.
func holdsSocket(pid int, inodes map[string]bool) bool {
	path := fmt.Sprintf("/proc/%d/fd", pid)
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, name := range names {
		target, err := os.Readlink(path + "/" + name)
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok && inodes[strings.TrimSuffix(inode, "]")] {
			return true
		}
	}
	return false
}

// descends tells whether pid is ancestor or comes from it.
func descends(pid, ancestor int) bool {
	for range 64 {
		if pid == ancestor {
			return true
		}
		stat, err := readStat(pid)
		if err != nil || stat.parent <= 1 {
			return false
		}
		pid = stat.parent
	}
	return false
}
