package process

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// procStat is what /proc/<pid>/stat says, as far as it matters here. Pid and
// start time together name a process for the time from one boot to the next.
type procStat struct {
	state     byte
	parent    int
	group     int
	session   int
	startTime uint64 // in clock ticks since the machine started
}

// dead tells that only the exit status is left.
func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' }

// readStat looks at a process.
func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The second field is the name in parentheses, and may hold anything.
	end := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) < 20 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	s := procStat{state: fields[0][0]}
	var errs [4]error
	s.parent, errs[0] = strconv.Atoi(fields[1])
	s.group, errs[1] = strconv.Atoi(fields[2])
	s.session, errs[2] = strconv.Atoi(fields[3])
	s.startTime, errs[3] = strconv.ParseUint(fields[19], 10, 64)
	return s, errors.Join(errs[:]...)
}

// maxEnviron bounds what is read of one environment.
const maxEnviron = 4 << 20

// variable returns a variable of the environment that a process was started
// with. One that may not be looked at has none.
func variable(pid int, name string) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEnviron))
	if err != nil {
		return ""
	}
	name += "="
	for entry := range bytes.SplitSeq(text, []byte{0}) {
		if len(entry) > len(name) && string(entry[:len(name)]) == name {
			return string(entry[len(name):])
		}
	}
	return ""
}

// allPIDs goes through the processes that can be seen.
func allPIDs() iter.Seq[int] {
	return func(yield func(int) bool) {
		dir, err := os.Open("/proc")
		if err != nil {
			return
		}
		defer dir.Close()
		for {
			names, err := dir.Readdirnames(512)
			for _, name := range names {
				if pid, err := strconv.Atoi(name); err == nil && !yield(pid) {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
}

// identity names a process beyond the reuse of its pid: on this machine,
// since this boot, in this namespace of pids.
type identity struct {
	// Machine tells this machine from others that share the data directory;
	// empty in records of earlier versions.
	Machine   string `json:"machine,omitempty"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	BootID    string `json:"boot_id"`
	Namespace string `json:"pid_namespace"`
}

// alive tells whether the process it names still runs. It is only meaningful
// in the namespace that the identity is of.
func (i identity) alive() bool {
	s, err := readStat(i.PID)
	return err == nil && s.startTime == i.StartTime && !s.dead()
}

// gone tells whether the process it names certainly runs no more: one that
// cannot be looked at, for lack of file descriptors, say, may.
func (i identity) gone() bool {
	s, err := readStat(i.PID)
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	return s.startTime != i.StartTime || s.dead()
}

// thisCaddy is the identity of this Caddy, once it is known.
var thisCaddy atomic.Pointer[identity]

// ownIdentity returns the identity of this Caddy. It does not change, so it is
// found out once; that it could not be, for lack of file descriptors, say, is
// not remembered.
func ownIdentity() (identity, error) {
	if known := thisCaddy.Load(); known != nil {
		return *known, nil
	}
	own, err := findOwnIdentity()
	if err == nil {
		thisCaddy.Store(&own)
	}
	return own, err
}

// machineID tells this machine from others: by /etc/machine-id, which is not
// shown as it is, else by its name.
func machineID() (string, error) {
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		if id := strings.TrimSpace(string(id)); len(id) == 32 {
			sum := sha256.Sum256([]byte("usher " + id))
			return "id-" + hex.EncodeToString(sum[:8]), nil
		}
	}
	name, err := os.Hostname()
	return "host-" + name, err
}

func findOwnIdentity() (identity, error) {
	s, err := readStat(os.Getpid())
	if err != nil {
		return identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return identity{}, err
	}
	machine, err := machineID()
	if err != nil {
		return identity{}, err
	}
	return identity{
		Machine: machine, PID: os.Getpid(), StartTime: s.startTime,
		BootID: strings.TrimSpace(string(boot)), Namespace: namespace,
	}, nil
}
