package process

import (
	"context"
	"testing"
	"time"
)

func TestTheProcessorTimeOfAnInstanceIsThatOfItsWholeGroup(t *testing.T) {
	// The work is done by a child of a child.
	b := open(t, &Backend{Command: "sh", Args: []string{"-c", "sh -c 'while :; do :; done' & wait"}})
	b.scale(1)
	id := b.one().ID
	deadline := time.Now().Add(patience)
	for {
		used, err := b.runner.CPUTime(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if used >= 100*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %v were counted", used)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := b.runner.CPUTime(context.Background(), "gone"); err == nil {
		t.Error("an instance that does not exist has used time")
	}
}
