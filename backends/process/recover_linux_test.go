package process

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

// killedCaddy runs a Caddy that starts one instance, and kills it with KILL
// after ready. It returns the pid of the instance.
func killedCaddy(t *testing.T, dataDir, keep, script string, ready func(), user ...string) int {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return killedCaddyOf(t, exec.Command(path, append([]string{"child", "caddy", dataDir, keep, script}, user...)...), ready)
}

// killedCaddyOf does this with a Caddy that a command runs.
func killedCaddyOf(t *testing.T, cmd *exec.Cmd, ready func()) int {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	var pid int
	if _, scanErr := fmt.Sscanf(line, "started %d", &pid); err != nil || scanErr != nil {
		t.Fatalf("%q %v", line, err)
	}
	ready()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return pid
}

func recoverNow(t *testing.T, dataDir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	new(Backend).Recover(ctx, scaler.Recovery{DataDir: dataDir, Logger: quiet()})
}

func TestG12ProcessesDieWithAKilledCaddyAndWhatTheyForkedAwayIsEndedByTheNext(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	var left []int
	pid := killedCaddy(t, dataDir, "stop", leaver(dir, "", "wait"), func() {
		left = []int{pidIn(t, dir+"/group"), pidIn(t, dir+"/session")}
	})
	eventually(t, "the process to die with its Caddy", func() bool { return gone(pid) })
	if gone(left[1]) || len(records(t, dataDir)) != 1 {
		t.Fatal("the test is void: nothing was left to find")
	}
	recoverNow(t, dataDir)
	for _, pid := range left {
		if !gone(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if r := records(t, dataDir); len(r) != 0 {
		t.Errorf("records left: %v", r)
	}
}

func TestProcessesOfAnotherUserDieWithAKilledCaddyToo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching needs root")
	}
	pid := killedCaddy(t, t.TempDir(), "stop", "exec sleep 100", func() {}, "nobody")
	eventually(t, "the process to die with its Caddy", func() bool { return gone(pid) })
}

func TestKeptProcessesOutliveAKilledCaddyAndAreEndedByTheNext(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	pid := killedCaddy(t, dataDir, "keep", "trap 'echo asked >"+dir+"/asked; exit' TERM; echo $$ >"+dir+"/pid; while :; do echo line; sleep 0.02; done", func() {
		pidIn(t, dir+"/pid")
	})
	// It writes on, to a file that is still there.
	before, err := os.Stat(outputFile(t, dataDir))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it to write on", func() bool {
		now, err := os.Stat(outputFile(t, dataDir))
		return err == nil && now.Size() > before.Size()
	})
	if gone(pid) {
		t.Fatal("it was to be kept")
	}
	recoverNow(t, dataDir)
	if !gone(pid) {
		t.Fatal("it is still there")
	}
	readEventually(t, dir+"/asked") // by the stop signal, not by KILL
	if entries, _ := os.ReadDir(recordDir(dataDir)); len(entries) != 0 {
		t.Fatalf("left: %v", entries)
	}
}

func outputFile(t *testing.T, dataDir string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(recordDir(dataDir), "*.stdout"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v %v", paths, err)
	}
	return paths[0]
}

func TestKeptProcessesAreLeftRunningByClose(t *testing.T) {
	b := open(t, shell("while :; do echo line; sleep 0.02; done"), func(_ *scaler.Env, l *scaler.LocalOptions) { l.Keep = true })
	in := b.one()
	pid := b.pid(in.ID)
	eventually(t, "a line", func() bool { return len(b.messages("stdout")) > 0 })
	b.close(0)
	if gone(pid) {
		t.Fatal("it was stopped")
	}
	if len(records(t, b.dataDir)) != 1 {
		t.Fatal("its record is gone")
	}
	// This Caddy still runs, so its instances are not recovered.
	recoverNow(t, b.dataDir)
	if gone(pid) {
		t.Fatal("what belongs to a running Caddy was ended")
	}
	// Written as by another Caddy, it is found.
	changeOwner(t, b.dataDir, func(owner *identity) { owner.StartTime-- })
	recoverNow(t, b.dataDir)
	if !gone(pid) {
		t.Fatal("it was not found")
	}
	_, _ = syscall.Wait4(pid, nil, 0, nil) // the watch over it has ended
}

// changeOwner rewrites the only record.
func changeOwner(t *testing.T, dataDir string, change func(*identity)) {
	t.Helper()
	paths := records(t, dataDir)
	if len(paths) != 1 {
		t.Fatalf("records: %v", paths)
	}
	r, err := readRecord(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	change(&r.Owner)
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWhatBelongsToALivingCaddyIsNotTouched(t *testing.T) {
	for name, test := range map[string]struct {
		change    func(*identity)
		untouched bool
		forgotten bool
	}{
		"this Caddy":                                 {func(*identity) {}, true, false},
		"a living one":                               {func(i *identity) { i.PID, i.StartTime = os.Getppid(), startOf(t, os.Getppid()) }, true, false},
		"one in another container":                   {func(i *identity) { i.Namespace, i.StartTime = "pid:[1]", 1 }, true, false},
		"one whose pid is another process's now":     {func(i *identity) { i.StartTime-- }, false, true},
		"one of another boot, its pids mean nothing": {func(i *identity) { i.BootID = "another" }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, shell("exec sleep 100"))
			pid := b.pid(b.one().ID)
			changeOwner(t, b.dataDir, test.change)
			recoverNow(t, b.dataDir)
			if gone(pid) == test.untouched {
				t.Errorf("ended: %v", gone(pid))
			}
			if got := len(records(t, b.dataDir)) == 0; got != test.forgotten {
				t.Errorf("forgotten: %v", got)
			}
		})
	}
}

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	stat, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	return stat.startTime
}

func TestAKillBetweenForkAndRecordLeavesATrace(t *testing.T) {
	dataDir := t.TempDir()
	r := &record{Instance: newID(), Service: "web"}
	if err := os.MkdirAll(recordDir(dataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	// What stands there before the fork names no process.
	if err := r.create(recordDir(dataDir)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "100")
	cmd.Env = []string{varInstance + "=" + r.Instance}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	changeOwner(t, dataDir, func(owner *identity) { owner.StartTime-- })
	recoverNow(t, dataDir)
	if err := cmd.Wait(); err == nil {
		t.Fatal("it was not ended")
	}
	if len(records(t, dataDir)) != 0 {
		t.Fatal("the record is left")
	}
}

func TestTheRecordStandsBeforeTheFork(t *testing.T) {
	// The instance itself looks whether it is recorded.
	dataDir := t.TempDir()
	b := open(t, shell(`ls `+dataDir+`/process/$USHER_INSTANCE.json; exec sleep 100`), func(env *scaler.Env, _ *scaler.LocalOptions) { env.DataDir = dataDir })
	in := b.one()
	eventually(t, "its answer", func() bool { return len(b.messages("stdout"))+len(b.messages("stderr")) > 0 })
	if len(b.messages("stdout")) != 1 {
		t.Fatalf("%q", b.messages("stderr"))
	}
	r, err := readRecord(records(t, dataDir)[0])
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownIdentity()
	if err != nil {
		t.Fatal(err)
	}
	pid := b.pid(in.ID)
	if r.PID != pid || r.StartTime != startOf(t, pid) || r.Owner != own || r.Address != in.Address || r.Service != "web" || r.Revision != "r1" || r.Fingerprint != b.backend.Fingerprint() {
		t.Fatalf("%+v", r)
	}
	b.scale(0, in.ID)
	b.close(patience)
	if left := records(t, dataDir); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

func TestRecoverRemovesSocketsThatNobodyServesAndRecordsThatAreNone(t *testing.T) {
	dataDir := t.TempDir()
	id := newID()
	socket := filepath.Join(mkdir(t, filepath.Join(t.TempDir(), id)), socketName)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if err := os.MkdirAll(recordDir(dataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	// Of its files only those go that can be its own.
	foreign := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &record{Instance: id, Socket: socket, Output: []string{foreign}}
	if err := r.create(recordDir(dataDir)); err != nil {
		t.Fatal(err)
	}
	changeOwner(t, dataDir, func(owner *identity) { owner.BootID = "earlier" })
	for name, text := range map[string]string{"half": `{"instance":`, "0123456789abcdef": `{"instance":"../../etc"}`} {
		if err := os.WriteFile(filepath.Join(recordDir(dataDir), name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recoverNow(t, dataDir)
	if _, err := os.Stat(filepath.Dir(socket)); err == nil {
		t.Error("the socket is left")
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error("a foreign file was removed")
	}
	if left := records(t, dataDir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRecoverEndsWithItsContext(t *testing.T) {
	dir, dataDir := t.TempDir(), t.TempDir()
	pid := killedCaddy(t, dataDir, "keep", "trap '' TERM; echo $$ >"+dir+"/pid; while :; do sleep 0.05; done", func() { pidIn(t, dir+"/pid") })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// No time is left to ask, so it kills what it began to end, or leaves it.
	new(Backend).Recover(ctx, scaler.Recovery{DataDir: dataDir, Logger: quiet()})
	recoverKilled := gone(pid)
	if recoverKilled == (len(records(t, dataDir)) == 1) {
		t.Fatalf("killed %v, records %v", recoverKilled, records(t, dataDir))
	}
	if !recoverKilled {
		proc, err := os.FindProcess(pid)
		if err == nil {
			_ = proc.Kill()
		}
	}
}
