package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// No look at the living would find these in time: they are in no session of
// their instance, live for a moment, and have no environment.
func TestAnOrphanThatLivesForAMomentInItsOwnSessionIsReaped(t *testing.T) {
	reapsOrphans(t)
	dir := t.TempDir()
	b := open(t, shell("while [ ! -e "+dir+"/go ]; do sleep 0.01; done; for n in 1 2 3 4 5; do (setsid env -i PATH=$PATH sh -c 'echo $$ >"+dir+"/'$n &); done; exec sleep 100"))
	in := b.one()
	if pid := b.pid(in.ID); !hasLineage(pid) {
		t.Fatal("the instance has not got its limit")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		pid := pidIn(t, filepath.Join(dir, fmt.Sprint(n+1)))
		eventually(t, "the orphan to be reaped", func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
			return errors.Is(err, os.ErrNotExist)
		})
	}
	// What its last breath leaves behind is reaped with it.
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
	b.close(time.Second)
	if left := zombies(); len(left) > 0 {
		t.Errorf("zombies: %v", left)
	}
}

// A child of another module of Caddy has a session of its own, too.
func TestAChildOfAnotherModuleInItsOwnSessionIsNotReaped(t *testing.T) {
	reapsOrphans(t)
	b := open(t, shell("sleep 100 & wait"))
	b.one()
	cmd := exec.Command("setsid", "sh", "-c", "exit 7")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end", func() bool { return gone(cmd.Process.Pid) })
	orphans.sweep()
	if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("its exit status was taken away: %v", err)
	}
}

func TestInstancesKeepTheirLimitsWhereCaddyGetsNoOrphans(t *testing.T) {
	b := open(t, shell("exec sleep 100"))
	if pid := b.pid(b.one().ID); hasLineage(pid) {
		t.Error("a limit of the instance was changed without need")
	}
}
