package hub

import (
	"path"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/policies"
)

// waitForMemory returns when the policy of web has learned something.
func waitForMemory(t *testing.T, s *Service) {
	t.Helper()
	r := new(reserver.Reservation)
	if has, err := s.Reserver.Reserve(r, reserver.Ask{}); err != nil {
		t.Fatal(err)
	} else if !has {
		if err := <-r.Granted(); err != nil {
			t.Fatal(err)
		}
	}
	r.Release(reserver.Answered)
	if s.Loop.Memory() == nil {
		t.Fatal("the policy remembers nothing")
	}
}

func TestWhatAPolicyLearnedSurvivesARestart(t *testing.T) {
	t.Parallel()
	disk := &memory{files: make(map[string][]byte)}
	h, g := learningHub(t, disk, policies.Adaptive{})
	waitForMemory(t, h.services["web"])
	h.Deactivate(g) // the last configuration: Caddy exits
	key := path.Join(memoriesPrefix, "web")
	if b := string(disk.files[key]); !strings.HasPrefix(b, `{"policy":"adaptive","memory":{"version":1,`) {
		t.Fatalf("stored is %q", b)
	}
	again, _ := learningHub(t, disk, policies.Adaptive{})
	if again.services["web"].Loop.Memory() == nil {
		t.Error("after a restart it knows nothing")
	}
}

func TestAMemoryThatCannotBeUsedIsDropped(t *testing.T) {
	t.Parallel()
	for _, stored := range []string{`{`, `{"policy":"other","memory":{}}`, `{"policy":"adaptive","memory":{"version":77}}`} {
		disk := &memory{files: map[string][]byte{path.Join(memoriesPrefix, "web"): []byte(stored)}}
		h, _ := learningHub(t, disk, policies.Adaptive{})
		if h.services["web"].Loop.Memory() != nil {
			t.Errorf("%s is used", stored)
		}
	}
}

func TestAStorageThatFailsCostsTheMemoryAlone(t *testing.T) {
	t.Parallel()
	disk := &memory{files: make(map[string][]byte), fail: errDisk}
	h, g := learningHub(t, disk, policies.Adaptive{})
	waitForMemory(t, h.services["web"])
	h.saveMemories(disk)
	h.Deactivate(g)
}
