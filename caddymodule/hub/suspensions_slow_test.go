package hub

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler/control"
)

// slowMemory is a storage that stops in the middle of a read: Load has its
// answer, and returns it when the test says so.
type slowMemory struct {
	*memory
	read, proceed chan struct{}
}

func (m *slowMemory) Load(ctx context.Context, key string) ([]byte, error) {
	b, err := m.memory.Load(ctx, key)
	m.read <- struct{}{}
	<-m.proceed
	return b, err
}

// activating begins to activate a configuration with the service web, which is
// suspended in the storage, and returns once that has been read. The function
// that is returned lets the storage answer and waits for the end.
func activating(t *testing.T) (h *Hub, s *Service, finish func()) {
	t.Helper()
	disk := &memory{files: map[string][]byte{suspensionKey("web"): []byte(`{"reason":"stored"}`)}}
	slow := &slowMemory{disk, make(chan struct{}), make(chan struct{})}
	h = newHub()
	// A configuration is in force, so that an operator can be served.
	if err := h.Activate(&Generation{Storage: disk, Logger: zap.NewNop()}); err != nil {
		t.Fatal(err)
	}
	s = h.Acquire("web")
	done := make(chan error, 1)
	go func() {
		done <- h.Activate(&Generation{Storage: slow, Services: map[string]*Service{"web": s}, Logger: zap.NewNop()})
	}()
	<-slow.read
	finish = func() {
		t.Helper()
		close(slow.proceed)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { _ = h.closeAll() })
	return h, s, finish
}

func TestASlowStorageHoldsUpOnlyTheConfigurationThatReadsIt(t *testing.T) {
	t.Parallel()
	h, s, finish := activating(t)
	answered := make(chan struct{})
	go func() {
		h.All()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(5 * time.Second):
		t.Error("the hub does not answer while the storage is read")
	}
	finish()
	if s.Loop.Status().State != control.Suspended || s.Suspended().Reason != "stored" {
		t.Errorf("%s", s.Loop.Status().State)
	}
}

func TestASuspensionThatIsWrittenWhileTheStorageIsReadWins(t *testing.T) {
	t.Parallel()
	h, s, finish := activating(t)
	if err := h.Suspend(t.Context(), s, "newer"); err != nil {
		t.Fatal(err)
	}
	finish()
	if s.Loop.Status().State != control.Suspended || s.Suspended().Reason != "newer" {
		t.Errorf("%s, %+v", s.Loop.Status().State, s.Suspended())
	}
}

func TestASuspensionThatEndsWhileTheStorageIsReadHasEnded(t *testing.T) {
	t.Parallel()
	h, s, finish := activating(t)
	if err := h.resume(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	finish()
	if s.Loop.Status().State == control.Suspended || s.Suspended() != nil {
		t.Errorf("%s, %+v", s.Loop.Status().State, s.Suspended())
	}
}
