//go:build linux

package kube

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The variables by which a program that Enter starts again knows where it is.
const (
	stageVariable = "USHER_KUBE_STAGE"
	dirVariable   = "USHER_KUBE_DIR"
	stageInit     = "init"
	stageInside   = "inside"
)

// Options say what Enter prepares.
type Options struct {
	Progress io.Writer // what happens, line by line
	Race     bool      // build Caddy with the race detector
	Keep     bool      // leave the directory of the cluster, for its logs
}

// Inside tells whether this process runs in the namespaces of a cluster.
func Inside() bool { return os.Getenv(stageVariable) == stageInside }

// Enter builds all that a cluster needs, runs this program again, with the
// same arguments, in namespaces of its own, and returns its exit status. It
// must be called before anything else: between the two there is a process in
// which it does not return.
func Enter(o Options) (status int, err error) {
	if os.Getenv(stageVariable) == stageInit {
		os.Exit(initProcess())
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)

	binary, err := buildComponents(o.Progress)
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "usher-kube-")
	if err != nil {
		return 1, err
	}
	if o.Keep {
		fmt.Fprintln(o.Progress, "the cluster's directory is", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := prepare(dir, binary, o.Race); err != nil {
		return 1, err
	}
	removeCgroups("usher-kube-*", 0) // of runs that were killed
	defer removeCgroups(filepath.Base(dir)+"-*", 3*time.Second)

	// The death signal comes when the thread ends that has started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := again(stageInit, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("making namespaces: %w", err)
	}
	go forward(signals, cmd.Process)
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return 1, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// prepare does what needs the machine's network or the module cache.
func prepare(dir, binary string, race bool) error {
	// The processes of a container are not root.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := linkComponents(binary, filepath.Join(dir, "bin")); err != nil {
		return err
	}
	// An image has nothing in it that a program could be linked with.
	if err := buildOwn(filepath.Join(dir, "bin", "app"), "test/app", []string{"CGO_ENABLED=0"}); err != nil {
		return err
	}
	if given := os.Getenv("USHER_TEST_CADDY"); given != "" {
		return os.Symlink(given, filepath.Join(dir, "bin", "caddy"))
	}
	caddy := filepath.Join(dir, "bin", "caddy")
	if race {
		return buildOwn(caddy, "test/caddy", nil, "-race")
	}
	// As xcaddy does it, so that it runs in an image, too.
	return buildOwn(caddy, "test/caddy", []string{"CGO_ENABLED=0"}, "-trimpath")
}

// again is this program as the next stage.
func again(stage, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(),
		stageVariable+"="+stage,
		dirVariable+"="+dir,
		"TMPDIR="+filepath.Join(dir, "tmp"),
		"USHER_TEST_CADDY="+filepath.Join(dir, "bin", "caddy"),
		"PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	return cmd
}

func forward(signals <-chan os.Signal, to *os.Process) {
	for sig := range signals {
		_ = to.Signal(sig)
	}
}

// initProcess is the first process of the process namespace: it starts the
// program, reaps what loses its parent, and with its end everything ends.
func initProcess() int {
	dir := os.Getenv(dirVariable)
	if err := settle(); err != nil {
		fmt.Fprintln(os.Stderr, "namespaces:", err)
		return 1
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	cmd := again(stageInside, dir)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go forward(signals, cmd.Process)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "waiting:", err)
			return 1
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == cmd.Process.Pid:
			return 128 + int(status.Signal())
		}
	}
}

// settle makes the new namespaces usable, and hides the machine's own places
// in which the components insist on writing.
func settle() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, place := range []string{"/run", "/var/lib/cni", "/var/log"} {
		if err := os.MkdirAll(place, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", place, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting %s: %w", place, err)
		}
	}
	return run("ip", "link", "set", "lo", "up")
}

// cgroupRoots are the hierarchies of this machine: one with cgroup v2, one
// for each controller with v1.
func cgroupRoots() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return []string{root}
	}
	var roots []string
	found, _ := filepath.Glob(root + "/*/cgroup.procs")
	for _, procs := range found {
		roots = append(roots, filepath.Dir(procs))
	}
	return roots
}

// makeCgroup makes the root cgroup of a kubelet, which insists on finding one
// in every hierarchy.
func makeCgroup(name string) error {
	for _, root := range cgroupRoots() {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A new cpuset is empty, and then no process can enter it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			data, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroups removes the cgroups whose names match, and has some patience
// with processes that are dead but not gone yet. The cgroups of a cluster that
// runs have processes, and the kernel keeps them.
func removeCgroups(pattern string, patience time.Duration) {
	remove := func() (left bool) {
		for _, root := range cgroupRoots() {
			tops, _ := filepath.Glob(filepath.Join(root, pattern))
			for _, top := range tops {
				var dirs []string
				_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
					if err == nil && d.IsDir() {
						dirs = append(dirs, path)
					}
					return nil
				})
				for _, dir := range slices.Backward(dirs) {
					left = syscall.Rmdir(dir) != nil || left
				}
			}
		}
		return left
	}
	for deadline := time.Now().Add(patience); remove() && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
}

// run runs a short command.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
