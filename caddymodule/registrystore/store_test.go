package registrystore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

func TestMain(m *testing.M) {
	// The file storage looks after a lock for up to 5 s after it was given back.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

// quick are limits for tests: a lock is abandoned sooner than by the file storage itself.
var quick = limits{kept: 20, lock: 3 * time.Second, abandoned: 3 * time.Second, write: 3 * time.Second, settled: 50 * time.Millisecond}

// counting is a storage that counts what is read.
type counting struct {
	certmagic.Storage
	reads atomic.Int64
}

func (c *counting) Load(ctx context.Context, key string) ([]byte, error) {
	c.reads.Add(1)
	return c.Storage.Load(ctx, key)
}

func (c *counting) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	c.reads.Add(1)
	return c.Storage.List(ctx, path, recursive)
}

func in(storage certmagic.Storage) func() (certmagic.Storage, error) {
	return func() (certmagic.Storage, error) { return storage, nil }
}

func files(place string) certmagic.Storage { return &certmagic.FileStorage{Path: place} }

func TestTheStoreInFiles(t *testing.T) {
	storages := make(map[registry.Store]*counting)
	var mu sync.Mutex
	registrytest.Run(t, registrytest.Subject{
		Place: func(t testing.TB) string { return t.TempDir() },
		Open: func(place string) (registry.Store, error) {
			storage := &counting{Storage: files(place)}
			store := newStore(in(storage), quick)
			mu.Lock()
			defer mu.Unlock()
			storages[store] = storage
			return store, nil
		},
		Kept:      quick.kept,
		Processes: true,
		Reads:     func(store registry.Store) int { return int(storages[store].reads.Load()) },
		FreeLock:  func(place string) { _ = files(place).Unlock(context.Background(), lockName) },
		LockLost:  time.Minute,
	})
}

// TestAChangeThatWasNotedIsReadUntilItIsWritten stops a writer between its two writes.
func TestAChangeThatWasNotedIsReadUntilItIsWritten(t *testing.T) {
	ctx := t.Context()
	storage := files(t.TempDir())
	reader := newStore(in(storage), limits{kept: 20, lock: time.Second, abandoned: time.Minute, settled: time.Minute})
	slow := &stopping{Storage: storage, at: servicesKey + "/web.json", reached: make(chan struct{}), resume: make(chan struct{})}
	writer := New(in(slow))
	put := func(record string) error {
		unlock, err := writer.Lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		return writer.Put(ctx, "web", []byte(record))
	}
	first, err := reader.Changes(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- put("new") }()
	<-slow.reached
	look := func(since registry.Position) registry.Changes {
		t.Helper()
		c, err := reader.Changes(ctx, since)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	early := look(first.Next)
	if _, err := reader.Load(ctx, "web"); !errors.Is(err, registry.ErrNotStored) {
		t.Fatalf("the record is there already: %v", err)
	}
	close(slow.resume)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if late := look(early.Next); !late.All && len(late.Names) != 1 {
		t.Errorf("after the record was written, a look tells %+v", late)
	}
	// When its writer must have ended, it is told once more, and then no more.
	reader.limits.settled = 0
	last := look(early.Next)
	if len(last.Names) != 1 && !last.All {
		t.Errorf("the last time, a look tells %+v", last)
	}
	if c := look(last.Next); c.All || len(c.Names) != 0 {
		t.Errorf("after that, a look tells %+v", c)
	}
}

// stopping is a storage that stops before it stores a key.
type stopping struct {
	certmagic.Storage
	at              string
	reached, resume chan struct{}
}

func (s *stopping) Store(ctx context.Context, key string, value []byte) error {
	if key == s.at {
		close(s.reached)
		<-s.resume
	}
	return s.Storage.Store(ctx, key, value)
}

func TestDamagedChangesAreNoTrouble(t *testing.T) {
	ctx := t.Context()
	place := t.TempDir()
	a, b := New(in(files(place))), New(in(files(place)))
	put := func(name string) {
		t.Helper()
		unlock, err := a.Lock(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		if err := a.Put(ctx, name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	c, err := b.Changes(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place, changesKey), []byte(`{"ver`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		put("two")
		if c, err = b.Changes(ctx, c.Next); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := b.List(ctx); err != nil || len(names) != 2 {
		t.Errorf("it lists %q, error %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(place, changesKey), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Changes(ctx, c.Next); err == nil {
		t.Error("changes of a newer version were read")
	}
}

func TestOtherFilesAreNoRecords(t *testing.T) {
	place := t.TempDir()
	dir := filepath.Join(place, servicesKey)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1234567", "A.json", "a..b.json", ".json", "web.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, err := New(in(files(place))).List(t.Context())
	if err != nil || fmt.Sprint(names) != "[web]" {
		t.Errorf("it lists %q, error %v", names, err)
	}
}

// hanging is a storage that stores nothing and says so when it is told to end.
type hanging struct{ certmagic.Storage }

func (h hanging) Store(ctx context.Context, _ string, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

// The caller's context does not end: a change that has begun is not given up with the
// client that has asked for it.
func TestAStorageThatHangsEndsTheChange(t *testing.T) {
	store := newStore(in(hanging{files(t.TempDir())}), limits{kept: 20, lock: time.Second, write: 10 * time.Millisecond})
	unlock, err := store.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := store.Put(t.Context(), "web", []byte("{}")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestAStorageThatIsNotThereIsAnError(t *testing.T) {
	none := errors.New("no configuration is in force")
	store := New(func() (certmagic.Storage, error) { return nil, none })
	ctx := t.Context()
	_, list := store.List(ctx)
	_, load := store.Load(ctx, "web")
	_, changes := store.Changes(ctx, "")
	_, lock := store.Lock(ctx)
	for _, err := range []error{list, load, changes, lock, store.Put(ctx, "web", nil), store.Remove(ctx, "web")} {
		if !errors.Is(err, none) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := store.Lock(ctx); !errors.Is(err, none) {
		t.Errorf("the second time the lock gives %v", err)
	}
}

// A directory that is not mounted is empty. That says of no service that it was
// deleted, and nothing is written there.
func TestAStorageThatHasLostAllIsAnError(t *testing.T) {
	place := t.TempDir()
	storage := files(filepath.Join(place, "mounted"))
	store := newStore(func() (certmagic.Storage, error) { return storage, nil }, quick)
	put(t, store, "web")
	before, err := store.Changes(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(place, "away")
	if err := os.Rename(filepath.Join(place, "mounted"), away); err != nil {
		t.Fatal(err)
	}
	storage = files(filepath.Join(place, "mounted")) // as after a reload
	for _, since := range []registry.Position{before.Next, ""} {
		if c, err := store.Changes(t.Context(), since); !errors.Is(err, errLost) {
			t.Errorf("since %q: %+v, %v", since, c, err)
		}
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(place, "mounted")), os.Rename(away, filepath.Join(place, "mounted"))); err != nil {
		t.Fatal(err)
	}
	if c, err := store.Changes(t.Context(), before.Next); err != nil || c.All || len(c.Names) > 0 {
		t.Errorf("it is back: %+v, %v", c, err)
	}
	// Another storage is another matter.
	storage = files(filepath.Join(place, "other"))
	if c, err := store.Changes(t.Context(), before.Next); err != nil || !c.All {
		t.Errorf("another storage: %+v, %v", c, err)
	}
}

// put writes a record under the lock.
func put(t *testing.T, s registry.Store, name string) {
	t.Helper()
	unlock, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := s.Put(t.Context(), name, []byte("{}")); err != nil {
		t.Fatal(err)
	}
}
