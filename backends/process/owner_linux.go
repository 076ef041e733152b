package process

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// checkOwner tells whether a connection to a loopback port reaches the
// instance. It returns an error only if it certainly does not: the port is
// held by a process that ran before the instance was started and that is not
// of it. Where the owner cannot be seen, or was started later by somebody else
// as a container runtime does it, the probe decides.
func checkOwner(port int, c *child, instance string) error {
	inodes := listeningInodes(port)
	if len(inodes) == 0 || holdsSocket(c.pid, inodes) {
		return nil
	}
	for pid := range allPIDs() {
		if pid == c.pid || !holdsSocket(pid, inodes) {
			continue
		}
		stat, err := readStat(pid)
		if err != nil {
			continue
		}
		own := stat.group == c.pid || variable(pid, varInstance) == instance || descends(stat.parent, c.pid)
		if !own && stat.startTime < c.startTime {
			return fmt.Errorf("port %d is held by process %d, which ran before instance %s was started and is not part of it: the probe reached that process; take the port out of the range of ports, or end the process", port, pid, instance)
		}
		return nil
	}
	return nil
}

// listeningInodes returns the inodes of the sockets that a connection to a
// loopback port can reach. One that listens on the very address goes before
// one that listens on all.
//
// Where no socket of IPv6 listens, the kernel goes through every connection of
// this machine to find that out, which takes milliseconds on a busy one. So
// its table is only asked if that of IPv4 does not have the port.
func listeningInodes(port int) map[string]bool {
	exact, all := make(map[string]bool), make(map[string]bool)
	for _, table := range [...]string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		eachListener(table, func(l listeningSocket) {
			switch {
			case l.port != port:
			case l.loopback():
				exact[l.inode] = true
			case strings.Trim(l.address, "0") == "", l.address == "0000000000000000FFFF000000000000":
				all[l.inode] = true
			}
		})
		if len(exact) > 0 {
			return exact
		}
		if len(all) > 0 {
			return all
		}
	}
	return nil
}

// unaccepted is how many connections to a passed socket wait to be accepted.
func unaccepted(port int) (n int) {
	eachListener("/proc/self/net/tcp", func(l listeningSocket) {
		if l.port == port && l.loopback() {
			n = l.waiting
		}
	})
	return n
}

// listeningSocket is a listening socket, as the kernel shows it.
type listeningSocket struct {
	address string // in hexadecimal digits
	port    int
	waiting int // connections
	inode   string
}

// loopback tells that the socket listens on the very address of instances.
func (l listeningSocket) loopback() bool {
	return l.address == "0100007F" || l.address == "0000000000000000FFFF00000100007F"
}

// eachListener goes through the listening sockets of a table of the kernel.
// They stand before all others, of which there may be very many.
func eachListener(table string, f func(listeningSocket)) {
	file, err := os.Open(table)
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Scan() // the heads of the columns
	for lines.Scan() {
		// sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode
		fields := strings.Fields(lines.Text())
		const listening = "0A"
		if len(fields) < 10 || fields[3] != listening {
			return
		}
		address, hexPort, _ := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(hexPort, 16, 16)
		if err != nil {
			return
		}
		// Of a listening socket the queue of what was received is this one.
		_, queue, _ := strings.Cut(fields[4], ":")
		waiting, err := strconv.ParseUint(queue, 16, 32)
		if err != nil {
			return
		}
		f(listeningSocket{address, int(port), int(waiting), fields[9]})
	}
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
