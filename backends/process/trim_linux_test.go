package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

// scripts are the processes that trim in a directory.
func scripts(dir string) (pids []int) {
	for pid := range allPIDs() {
		if variable(pid, "dir") == dir && variable(pid, "blocks") != "" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestOutputIsBoundedWithoutCaddyAndTheProgramLivesOn(t *testing.T) {
	dir := t.TempDir()
	const limit = 1 << 20
	file, err := os.OpenFile(filepath.Join(dir, "x.stdout"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	small := filepath.Join(dir, "x.stderr")
	if err := os.WriteFile(small, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "large.json")
	if err := os.WriteFile(other, make([]byte, 2*limit), 0o600); err != nil {
		t.Fatal(err)
	}
	life, err := startTrimmer(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	writer := exec.Command("/bin/sh", "-c", "while :; do head -c 200000 /dev/zero; sleep 0.02; done")
	writer.Stdout = file
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = writer.Wait()
	}()
	defer func() {
		_ = writer.Process.Kill()
		<-ended
	}()
	size := func() int64 {
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	// While Caddy lives, that is its own business.
	eventually(t, "more than the limit", func() bool { return size() > 2*limit })
	life.Close()
	for range 3 {
		eventually(t, "the file to be cut", func() bool { return size() < limit })
		eventually(t, "more output", func() bool { return size() > limit })
	}
	select {
	case <-ended:
		t.Error("the program has ended")
	default:
	}
	if info, err := os.Stat(other); err != nil || info.Size() != 2*limit {
		t.Errorf("another file was touched: %v", err)
	}
	if text, err := os.ReadFile(small); err != nil || string(text) != "kept" {
		t.Errorf("a small file was touched: %q %v", text, err)
	}

	// The next Caddy has a script of its own: this one ends.
	next, err := startTrimmer(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one script", func() bool { return len(scripts(dir)) == 1 })
	// Without files the last one ends, too.
	if err := os.Remove(filepath.Join(dir, "x.stdout")); err != nil {
		t.Fatal(err)
	}
	next.Close()
	eventually(t, "no script", func() bool { return len(scripts(dir)) == 0 })
}

func TestTheScriptThatBoundsOutputEndsWithTheLastKeptInstance(t *testing.T) {
	b := open(t, shell("exec sleep 100"), func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true })
	b.scale(2)
	dir := recordDir(b.dataDir)
	eventually(t, "the script", func() bool { return len(scripts(dir)) == 1 })
	ids := b.latest().Instances
	b.scale(1, ids[0].ID)
	b.awaitEnd(ids[0].ID)
	if n := len(scripts(dir)); n != 1 {
		t.Errorf("%d scripts beside an instance that is kept", n)
	}
	b.scale(0, ids[1].ID)
	b.awaitEnd(ids[1].ID)
	eventually(t, "no script", func() bool { return len(scripts(dir)) == 0 })
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
}

func TestAnInstanceThatIsNotKeptNeedsNoScript(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	b.one()
	if n := len(scripts(recordDir(b.dataDir))); n != 0 {
		t.Errorf("%d scripts", n)
	}
}

func TestTheScriptInheritsNoFileOfCaddys(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.stdout"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	life, err := startTrimmer(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	defer os.Remove(filepath.Join(dir, "x.stdout"))
	eventually(t, "the script", func() bool { return len(scripts(dir)) == 1 })
	pid := scripts(dir)[0]
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || to == os.DevNull || strings.HasPrefix(to, "pipe:") {
			continue
		}
		t.Errorf("%s is %s", fd, to)
	}
}
