package process

import (
	"os"
	"testing"
)

func TestAStoppedInstanceHasEndedWhenAllOfItHas(t *testing.T) {
	dir := t.TempDir()
	// The wrapper ends at once, and the program behind it keeps its lock for a
	// while: the next instance must not start before that.
	b := open(t, shell(`sh -c 'trap "sleep 0.4; echo done >`+dir+`/done; exit" TERM; echo >`+dir+`/ready; while :; do sleep 0.02; done' & wait`))
	in := b.one()
	readEventually(t, dir+"/ready")
	b.scale(0, in.ID)
	b.awaitEnd(in.ID)
	if got, _ := os.ReadFile(dir + "/done"); string(got) != "done\n" {
		t.Fatal("its end was reported while a part of it still ran")
	}
}
