package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caddy-usher/usher/async"
)

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *Store, body string) async.Task {
	t.Helper()
	task, _, err := s.Put(t.Context(), async.NewTask{Queue: "q"}, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	put(t, s, "x")
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), "belongs to one Caddy") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("Open of a store in use: error %v", err)
	}
	put(t, s, "y")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
}

func TestTheKeyMustBeTheSame(t *testing.T) {
	for _, c := range []struct{ made, opened, want string }{
		{"one", "two", "wrong"},
		{"one", "", "there is no key"},
		{"", "one", "not encrypted"},
	} {
		dir := t.TempDir()
		s := open(t, dir, Options{Key: c.made})
		task := put(t, s, "x")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{Key: c.opened}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("made with %q, opened with %q: error %v, want %q in it", c.made, c.opened, err, c.want)
		}
		if c.want == "wrong" {
			if _, err := Open(dir, Options{Key: c.opened}); !errors.Is(err, ErrWrongKey) {
				t.Errorf("it is not ErrWrongKey: %v", err)
			}
		}
		// It stays as it is.
		s = open(t, dir, Options{Key: c.made})
		if _, err := s.Get(t.Context(), task.ID); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingOfRequestsIsReadableWithAKey(t *testing.T) {
	const secret = "a word that must not be found"
	dir := t.TempDir()
	s := open(t, dir, Options{Key: "key"})
	for _, body := range []string{secret, strings.Repeat(secret, 10000)} {
		n := async.NewTask{
			Queue: "q", Group: secret, Key: secret + body[:40%len(body)], Client: secret, Fingerprint: secret, Callback: secret,
			Request: async.Request{Method: "POST", URI: secret, Host: secret, Header: map[string][]string{secret: {secret}}},
		}
		task, _, err := s.Put(t.Context(), n, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Claim(t.Context(), "owner", "q", 1); err != nil {
			t.Fatal(err)
		}
		a := &async.Answer{Status: 200, Header: map[string][]string{secret: {secret}}, Body: io.NopCloser(strings.NewReader(body))}
		if _, err := s.Settle(t.Context(), task.ID, 1, async.Outcome{State: async.Failed, Reason: secret, Answer: a}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s has it", path)
		}
		return err
	})
	if err != nil || files != 3 {
		t.Errorf("there are %d files, want the database, a body and an answer; error %v", files, err)
	}
}

func TestADamagedFileIsNoticedWithAKey(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Key: "key"})
	task := put(t, s, strings.Repeat("x", 300<<10))
	names, err := filepath.Glob(filepath.Join(dir, bodiesName, "*"))
	if err != nil || len(names) != 1 {
		t.Fatalf("there are %q, error %v", names, err)
	}
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	chunk := len(whole) / 4
	for what, damaged := range map[string][]byte{
		"cut off at a chunk": whole[:(4+chunkSize+28)*2],
		"cut off":            whole[:chunk],
		"empty":              nil,
		"changed":            append(append(bytes.Clone(whole[:chunk]), whole[chunk]^1), whole[chunk+1:]...),
	} {
		if err := os.WriteFile(names[0], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		body, err := s.Body(t.Context(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, body); err == nil {
			t.Errorf("%s: %d bytes are read without an error", what, n)
		}
		body.Close()
	}
}

// What was written before a process was killed, and never named by a record, goes.
func TestStrayFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	task := put(t, s, strings.Repeat("x", inlineMost+1))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, bodiesName, "0123456789abcdef0123456789abcdef")
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stray file is there: %v", err)
	}
	body, err := s.Body(t.Context(), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	if _, err := s.Cancel(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, bodiesName)); err != nil || len(left) != 0 {
		t.Errorf("after Purge there are %d files, error %v", len(left), err)
	}
}

// A body that was refused leaves no file.
func TestRefusedBodiesLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	body := strings.Repeat("x", inlineMost+1)
	n := async.NewTask{Queue: "q", Key: "k", MaxTasks: 1}
	for range 3 {
		if _, _, err := s.Put(t.Context(), n, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Put(t.Context(), async.NewTask{Queue: "q", MaxTasks: 1}, strings.NewReader(body)); !errors.Is(err, async.ErrFull) {
		t.Fatal(err)
	}
	if _, _, err := s.Put(t.Context(), n, strings.NewReader(body+"y")); !errors.Is(err, async.ErrKeyReused) {
		t.Fatal(err)
	}
	if _, _, err := s.Put(t.Context(), n, io.MultiReader(strings.NewReader(body), failing{})); err == nil {
		t.Fatal("a body that cannot be read is accepted")
	}
	if left, err := os.ReadDir(filepath.Join(dir, bodiesName)); err != nil || len(left) != 1 {
		t.Errorf("there are %d files, want 1, error %v", len(left), err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("gone") }

func TestTheDatabaseGetsSmaller(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.compactFrom = 2 << 20
	kept := put(t, s, "kept")
	var tasks []async.Task
	for range 100 {
		tasks = append(tasks, put(t, s, strings.Repeat("x", 60<<10)))
	}
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, databaseName))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if n, err := s.Sweep(t.Context()); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	before := size()
	for _, task := range tasks {
		if _, err := s.Cancel(t.Context(), task.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(t.Context(), task.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Sweep(t.Context()); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if after := size(); after > before/4 {
		t.Errorf("the database has %d bytes, and had %d", after, before)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("after that it is not locked")
	}
	late := put(t, s, "late")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	for _, task := range []async.Task{kept, late} {
		if _, err := s.Get(t.Context(), task.ID); err != nil {
			t.Error(err)
		}
	}
}

// After an error of the disk it is not known what was written.
func TestNothingIsWrittenAfterAnErrorOfTheDisk(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	task := put(t, s, "x")
	for _, full := range []error{syscall.ENOSPC, fmt.Errorf("resize: %s", syscall.ENOSPC)} {
		b := &batch{writes: []*write{{}}}
		s.fail(b, full)
		if b.writes[0].err == nil {
			t.Error("a write that has failed has no error")
		}
		put(t, s, "y")
	}
	s.fail(&batch{}, syscall.EIO)
	for range 2 {
		_, _, err := s.Put(t.Context(), async.NewTask{Queue: "q"}, strings.NewReader("x"))
		if !errors.Is(err, syscall.EIO) || strings.Count(err.Error(), "takes nothing more") != 1 {
			t.Errorf("Put after an error of the disk: %v", err)
		}
	}
	if _, err := s.Get(t.Context(), task.ID); err != nil {
		t.Errorf("what is stored is not readable: %v", err)
	}
}
