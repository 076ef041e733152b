package process

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// listeningOf finds where the processes of an instance listen: those of its
// group, those that come from it, and those that carry its name.
func listeningOf(in *instance) listening {
	at := listening{known: true}
	pid := in.child.pid
	sockets := make(map[string]bool)
	for _, p := range processScan.take() {
		if p.stat.group == pid || p.pid == pid || p.instance == in.id || descends(p.stat.parent, pid) {
			if !socketsOf(p.pid, sockets) {
				at.known = false
			}
		}
	}
	at.apart = apart(pid)
	tables := fmt.Sprintf("/proc/%d/net/", pid)
	for _, table := range [...]string{"tcp", "tcp6"} {
		_ = eachListener(tables+table, func(l listeningSocket) {
			if sockets[l.name()] {
				at.tcp = append(at.tcp, l.address)
			}
		})
	}
	eachUnixListener(tables+"unix", func(inode, path string) {
		if sockets[inode] {
			at.unix = append(at.unix, path)
		}
	})
	return at.sorted()
}

// apart says whether a process certainly is in another network namespace than
// Caddy.
func apart(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && its != own
}

// socketsOf adds the inodes of all sockets of a process to a set. It returns
// false if the process may not be looked at.
func socketsOf(pid int, inodes map[string]bool) bool {
	path := fmt.Sprintf("/proc/%d/fd", pid)
	dir, err := os.Open(path)
	if err != nil {
		return vanished(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return vanished(err)
	}
	for _, name := range names {
		target, err := os.Readlink(path + "/" + name)
		if err != nil {
			if !vanished(err) {
				return false
			}
			continue
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return true
}

// vanished says whether err says that the process, or its file, has ended.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// kernelAddress reads an address as the tables of the kernel have it: words of
// 32 bits in the order of the machine's bytes.
func kernelAddress(digits string) (netip.Addr, bool) {
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw)%4 != 0 {
		return netip.Addr{}, false
	}
	for k := 0; k < len(raw); k += 4 {
		binary.NativeEndian.PutUint32(raw[k:], binary.BigEndian.Uint32(raw[k:]))
	}
	return netip.AddrFromSlice(raw)
}

// eachUnixListener goes through the sockets of a table that listen at a path.
func eachUnixListener(table string, f func(inode, path string)) {
	file, err := os.Open(table)
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Scan() // the heads of the columns
	for lines.Scan() {
		// address, references, protocol, flags, type, state, inode, path
		fields := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", 8)
		const accepts = "00010000"
		if len(fields) == 8 && fields[3] == accepts && !strings.HasPrefix(fields[7], "@") {
			f(fields[6], fields[7])
		}
	}
}
