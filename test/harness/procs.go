package harness

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// markVariable names the variable by which a test knows its own processes.
const markVariable = "APP_MARK"

// Mark is the value of APP_MARK that the processes of this test carry, for
// configurations that are not made with Backend or Command.
func (c *Caddy) Mark() string { return c.mark }

// A Process is one that Usher started, or one that such a process started.
type Process struct {
	PID      int
	Service  string // USHER_SERVICE
	Instance string // USHER_INSTANCE
	Args     []string
}

// Processes lists what of this test runs now: every process with
// USHER_INSTANCE and the mark of this test in its environment. A process
// keeps those through a fork or a new session, and other tests have other marks.
func (c *Caddy) Processes() []Process {
	var found []Process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		environ, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(environ, []byte(c.mark)) {
			continue
		}
		env := make(map[string]string)
		for kv := range strings.SplitSeq(string(environ), "\x00") {
			if k, v, ok := strings.Cut(kv, "="); ok {
				env[k] = v
			}
		}
		if env[markVariable] != c.mark || env["USHER_INSTANCE"] == "" {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		found = append(found, Process{
			PID:      pid,
			Service:  env["USHER_SERVICE"],
			Instance: env["USHER_INSTANCE"],
			Args:     strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"),
		})
	}
	return found
}

// Count returns the number of Processes.
func (c *Caddy) Count() int { return len(c.Processes()) }

// Kill sends SIGKILL to the process, as the machine's out-of-memory killer
// would.
func (p Process) Kill() {
	if proc, err := os.FindProcess(p.PID); err == nil {
		_ = proc.Kill()
		_ = proc.Release()
	}
}
