package registrytest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
)

// Subject is a store under test.
type Subject struct {
	// Place makes an empty store and returns how Open finds it. Required.
	Place func(t testing.TB) string

	// Open opens the store at a place. Several may be open at once. It is also called in
	// other processes, if Processes is set. Required.
	Open func(place string) (registry.Store, error)

	// Kept is how many changes a reader may be behind without reading all records; 0: any
	// number.
	Kept int

	// Processes is true if other processes can use the store.
	Processes bool

	// Reads returns how often a store has read from the storage below it. nil: it is not
	// counted.
	Reads func(store registry.Store) int

	// FreeLock takes the lock from a process that was killed, so that the suite need not
	// wait for that. nil: it waits.
	FreeLock func(place string)

	// LockLost is how long a lock outlives its process at most. Required with Processes.
	LockLost time.Duration
}

// How another process is told what to do. The place follows the role.
const (
	roleVariable  = "USHER_REGISTRYTEST_ROLE"
	placeVariable = "USHER_REGISTRYTEST_PLACE"
)

// reportPrefix is before what a process reports: the test's own output is there, too.
const reportPrefix = "registrytest: "

// bench is a Subject in a test.
type bench struct {
	Subject
	*testing.T
	test, place string
}

// Run runs the suite. The test that calls it does nothing else: other processes run it
// again.
func Run(t *testing.T, s Subject) {
	t.Helper()
	if role := os.Getenv(roleVariable); role != "" {
		child(t, s, role)
		return
	}
	for _, c := range []struct {
		name      string
		processes bool
		check     func(*bench)
	}{
		{"records are written, read, listed and removed", false, checkRecords},
		{"names that are paths are refused", false, checkNames},
		{"one at a time has the lock", false, checkLock},
		{"others learn what has changed", false, checkChanges},
		{"a look costs one read if nothing has changed", false, checkLook},
		{"a reader that is far behind reads all", false, checkFarBehind},
		{"of two registries with the same ETag one is refused", false, checkTwoRegistries},
		{"of two processes with the same ETag one is refused", true, checkTwoProcesses},
		{"a process that is killed leaves whole records", true, checkKill},
		{"the lock of a process that is killed is lost", true, checkLockLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.processes && !s.Processes {
				t.Skip("other processes cannot use the store")
			}
			c.check(&bench{Subject: s, T: t, test: strings.SplitN(t.Name(), "/", 2)[0], place: s.Place(t)})
		})
	}
}

func (s *bench) open() registry.Store {
	s.Helper()
	store, err := s.Open(s.place)
	if err != nil {
		s.Fatal(err)
	}
	return store
}

func (s *bench) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// put writes a record under the lock.
func (s *bench) put(store registry.Store, name, record string) {
	s.Helper()
	unlock, err := store.Lock(s.Context())
	s.must(err)
	defer unlock()
	s.must(store.Put(s.Context(), name, []byte(record)))
}

func (s *bench) remove(store registry.Store, name string) {
	s.Helper()
	unlock, err := store.Lock(s.Context())
	s.must(err)
	defer unlock()
	s.must(store.Remove(s.Context(), name))
}

// wantRecord checks what is stored; "" is nothing.
func (s *bench) wantRecord(store registry.Store, name, want string) {
	s.Helper()
	record, err := store.Load(s.Context(), name)
	if want == "" && !errors.Is(err, registry.ErrNotStored) || want != "" && (err != nil || string(record) != want) {
		s.Errorf("record %s is %q, error %v, want %q", name, record, err, want)
	}
}

func (s *bench) wantNames(store registry.Store, want ...string) {
	s.Helper()
	names, err := store.List(s.Context())
	s.must(err)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		s.Errorf("it lists %q, want %q", names, want)
	}
}

func checkRecords(s *bench) {
	a, b := s.open(), s.open()
	s.wantNames(a)
	s.wantRecord(a, "web", "")
	s.remove(a, "web")
	large := strings.Repeat("x", 1<<20)
	s.put(a, "web", "one")
	s.put(a, "a.b_c-0", large)
	s.put(b, "web", "two")
	for _, store := range []registry.Store{a, b, s.open()} {
		s.wantNames(store, "a.b_c-0", "web")
		s.wantRecord(store, "web", "two")
		s.wantRecord(store, "a.b_c-0", large)
		s.wantRecord(store, "a", "")
	}
	s.remove(b, "web")
	s.wantRecord(a, "web", "")
	s.wantNames(a, "a.b_c-0")
}

func checkNames(s *bench) {
	store := s.open()
	unlock, err := store.Lock(s.Context())
	s.must(err)
	defer unlock()
	for _, name := range []string{"", ".", "..", "../changes", "a/b", "a..b", "A", "a\x00", strings.Repeat("a", 64)} {
		if _, err := store.Load(s.Context(), name); err == nil {
			s.Errorf("it has loaded %q", name)
		}
		if store.Put(s.Context(), name, []byte("x")) == nil {
			s.Errorf("it has written %q", name)
		}
		if store.Remove(s.Context(), name) == nil {
			s.Errorf("it has removed %q", name)
		}
	}
	s.wantNames(store)
}

func checkLock(s *bench) {
	const holders, rounds = 4, 5
	var inside, most int
	var mu sync.Mutex
	var all sync.WaitGroup
	same := s.open()
	for i := range holders {
		store := same
		if i == holders-1 {
			store = s.open()
		}
		all.Go(func() {
			for range rounds {
				unlock, err := store.Lock(s.Context())
				if err != nil {
					s.Error(err)
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Millisecond) // so that a second one would be seen
				mu.Lock()
				inside--
				mu.Unlock()
				unlock()
			}
		})
	}
	all.Wait()
	if most != 1 {
		s.Errorf("%d had the lock at once", most)
	}
	unlock, err := same.Lock(s.Context())
	s.must(err)
	defer unlock()
	for _, store := range []registry.Store{same, s.open()} {
		ctx, cancel := context.WithTimeout(s.Context(), 50*time.Millisecond)
		if _, err := store.Lock(ctx); err == nil {
			s.Error("two have the lock")
		}
		cancel()
	}
}

// changes asks a store for changes, under the lock so that all are told.
func (s *bench) changes(store registry.Store, since registry.Position) registry.Changes {
	s.Helper()
	unlock, err := store.Lock(s.Context())
	s.must(err)
	defer unlock()
	c, err := store.Changes(s.Context(), since)
	s.must(err)
	slices.Sort(c.Names)
	return c
}

func checkChanges(s *bench) {
	a, b := s.open(), s.open()
	s.put(a, "first", "1")
	c := s.changes(b, "")
	if !c.All {
		s.Error("from the beginning it does not tell to read all")
	}
	if c = s.changes(b, c.Next); c.All || len(c.Names) != 0 {
		s.Errorf("nothing has changed, and it tells %+v", c)
	}
	s.put(a, "web", "1")
	s.put(b, "own", "1")
	s.put(a, "web", "2")
	s.put(a, "both", "1")
	s.put(b, "both", "1")
	s.remove(a, "first")
	if c = s.changes(b, c.Next); c.All || !slices.Equal(c.Names, []string{"both", "first", "web"}) {
		s.Errorf("it tells %+v, want both, first and web", c)
	}
	if c = s.changes(b, c.Next); c.All || len(c.Names) != 0 {
		s.Errorf("the second time it tells %+v", c)
	}
	if c = s.changes(b, "no position"); !c.All {
		s.Errorf("from no position it tells %+v", c)
	}
	// Without the lock it may tell a name again, and never one too few.
	s.put(a, "late", "1")
	told, err := b.Changes(s.Context(), s.changes(b, "").Next)
	s.must(err)
	if told.All || len(told.Names) > 1 {
		s.Errorf("it tells %+v", told)
	}
}

func checkLook(s *bench) {
	if s.Reads == nil {
		s.Skip("reads are not counted")
	}
	a, b := s.open(), s.open()
	s.put(a, "web", "1")
	next := s.changes(b, "").Next
	for range 3 {
		before := s.Reads(b)
		c, err := b.Changes(s.Context(), next)
		s.must(err)
		if reads := s.Reads(b) - before; reads != 1 {
			s.Errorf("a look costs %d reads", reads)
		}
		if len(c.Names) == 0 {
			next = c.Next
		}
	}
}

func checkFarBehind(s *bench) {
	a, b := s.open(), s.open()
	s.put(a, "web", "0")
	next := s.changes(b, "").Next
	unlock, err := a.Lock(s.Context())
	s.must(err)
	write := func(n int) {
		for i := range n {
			s.must(a.Put(s.Context(), "s"+strconv.Itoa(i%5), []byte("x")))
		}
	}
	kept := s.Kept
	if kept == 0 {
		kept = 100
	}
	write(kept)
	unlock()
	c := s.changes(b, next)
	if c.All || len(c.Names) != 5 {
		s.Errorf("after %d changes it tells %+v", kept, c)
	}
	unlock, err = a.Lock(s.Context())
	s.must(err)
	write(kept + 1)
	unlock()
	if c = s.changes(b, c.Next); c.All != (s.Kept > 0) || !c.All && len(c.Names) != 5 {
		s.Errorf("after %d changes it tells %+v", kept+1, c)
	}
}

// body is the body of a service with that value.
func body(value string) []byte {
	return []byte(`{"service":{"backend":{"type":"test","value":"` + value + `"}}}`)
}

func newRegistry(store registry.Store) *registry.Registry {
	r := registry.New(store, func(*registry.Record, *registry.Record) {})
	r.Use(registry.Rules{AllowBackends: []string{"test"}, KeepRevisions: 3})
	return r
}

func operator() registry.Call { return registry.Call{Operator: true, By: "suite", Now: time.Now()} }

func checkTwoRegistries(s *bench) {
	a, b := newRegistry(s.open()), newRegistry(s.open())
	s.must(a.Load(s.Context()))
	s.must(b.Load(s.Context()))
	_, _, err := a.Put(s.Context(), operator(), "web", body("0"))
	s.must(err)
	for round := range 3 {
		s.must(b.Refresh(s.Context()))
		call := operator()
		call.IfMatch = a.Get("web").ETag()
		results := make(chan error, 2)
		for i, r := range []*registry.Registry{a, b} {
			go func() {
				_, _, err := r.Put(s.Context(), call, "web", body(fmt.Sprint(round, i)))
				results <- err
			}()
		}
		kinds := []registry.Kind{registry.KindOf(<-results), registry.KindOf(<-results)}
		if slices.Sort(kinds); !slices.Equal(kinds, []registry.Kind{0, registry.Stale}) {
			s.Fatalf("the outcomes are of kinds %v, want one success and one Stale", kinds)
		}
		s.must(a.Refresh(s.Context(), "web"))
		s.must(b.Refresh(s.Context(), "web"))
		if a.Get("web").State() != b.Get("web").State() {
			s.Fatal("the two have different records")
		}
	}
}

// start runs the test again as another process with a role.
func (s *bench) start(role string) (*exec.Cmd, io.WriteCloser, *bufio.Scanner) {
	s.Helper()
	self, err := os.Executable()
	s.must(err)
	c := exec.Command(self, "-test.run", "^"+s.test+"$", "-test.timeout", "2m")
	c.Env = append(os.Environ(), roleVariable+"="+role, placeVariable+"="+s.place)
	in, err := c.StdinPipe()
	s.must(err)
	out, err := c.StdoutPipe()
	s.must(err)
	c.Stderr = os.Stderr
	s.must(c.Start())
	s.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c, in, bufio.NewScanner(out)
}

// next returns the next report of a process, or "" at its end.
func next(lines *bufio.Scanner) string {
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), reportPrefix); ok {
			return text
		}
	}
	return ""
}

func report(words ...any) { _, _ = fmt.Fprint(os.Stdout, reportPrefix, fmt.Sprintln(words...)) }

// child is a process that the suite has started.
func child(t *testing.T, s Subject, role string) {
	store, err := s.Open(os.Getenv(placeVariable))
	if err != nil {
		report("error", err)
		return
	}
	switch role {
	case "put":
		putAsTold(t, store)
	case "write":
		writeUntilKilled(t, store)
	case "lock":
		if _, err := store.Lock(t.Context()); err != nil {
			report("error", err)
			return
		}
		report("locked")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

// putAsTold puts a value for each line that it reads, on condition of an ETag.
func putAsTold(t *testing.T, store registry.Store) {
	r := newRegistry(store)
	if err := r.Load(t.Context()); err != nil {
		report("error", err)
		return
	}
	report("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		value, tag, _ := strings.Cut(lines.Text(), " ")
		call := operator()
		call.IfMatch = tag
		_, _, err := r.Put(t.Context(), call, "web", body(value))
		report("kind", int(registry.KindOf(err)), err)
	}
}

func checkTwoProcesses(s *bench) {
	r := newRegistry(s.open())
	s.must(r.Load(s.Context()))
	record, _, err := r.Put(s.Context(), operator(), "web", body("0"))
	s.must(err)
	type process struct {
		in  io.Writer
		out *bufio.Scanner
	}
	var all [2]process
	for i := range all {
		_, in, out := s.start("put")
		all[i] = process{in, out}
		if got := next(out); got != "ready" {
			s.Fatalf("a process reports %q", got)
		}
	}
	for round := range 3 {
		for i, p := range all {
			_, err := fmt.Fprintf(p.in, "v%d-%d %s\n", round, i, record.ETag())
			s.must(err)
		}
		a, b := next(all[0].out), next(all[1].out)
		stale := "kind " + strconv.Itoa(int(registry.Stale))
		if (a == "kind 0 <nil>") == (b == "kind 0 <nil>") || !strings.HasPrefix(a, stale) && !strings.HasPrefix(b, stale) {
			s.Fatalf("the processes report %q and %q, want one success and one stale", a, b)
		}
		s.must(r.Refresh(s.Context()))
		if next := r.Get("web"); next.Current().Number != record.Current().Number+1 {
			s.Fatalf("after %+v there is %+v", record.Current(), next.Current())
		}
		record = r.Get("web")
	}
}

// writeUntilKilled makes one revision after the other, of large definitions, and reports
// each before and after.
func writeUntilKilled(t *testing.T, store registry.Store) {
	r := newRegistry(store)
	if err := r.Load(t.Context()); err != nil {
		report("error", err)
		return
	}
	for {
		call := operator()
		n := 1
		if old := r.Get("web"); old != nil {
			call.IfMatch, n = old.ETag(), old.Current().Number+1
		}
		report("writes", n)
		if _, _, err := r.Put(t.Context(), call, "web", body(strings.Repeat(strconv.Itoa(n%10), 20000))); err != nil {
			report("error", err)
			return
		}
		report("wrote", n)
	}
}

func checkKill(s *bench) {
	reader := newRegistry(s.open())
	s.must(reader.Load(s.Context()))
	const rounds = 6
	for round := range rounds {
		c, _, out := s.start("write")
		var kill sync.Once
		var begun, done int
		for text := next(out); text != ""; text = next(out) {
			word, number, _ := strings.Cut(text, " ")
			n, err := strconv.Atoi(number)
			if err != nil {
				s.Fatalf("the process reports %q", text)
			}
			if word == "writes" {
				begun = n
				continue
			}
			done = n
			kill.Do(func() {
				time.AfterFunc(time.Duration(1+rand.IntN(40))*time.Millisecond, func() { _ = c.Process.Kill() })
			})
			// Others see whole records at any time.
			if n%3 == 0 {
				s.must(reader.Refresh(s.Context(), "web"))
			}
			if rejected := reader.Rejected(); len(rejected) > 0 {
				s.Fatalf("a record cannot be read: %+v", rejected)
			}
		}
		_ = c.Wait() // it was killed
		if s.FreeLock != nil {
			s.FreeLock(s.place)
		}
		if done == 0 {
			s.Fatal("the process has written nothing")
		}
		// A look alone shows what there is, without the lock of the one that was killed.
		s.must(reader.Refresh(s.Context()))
		record := reader.Get("web")
		if n := record.Current().Number; n != done && n != begun {
			s.Fatalf("round %d: revision %d is stored, and %d was written, %d begun", round, n, done, begun)
		}
		for _, rev := range record.Revisions {
			if want := body(strings.Repeat(strconv.Itoa(rev.Number%10), 20000)); !bytes.Contains(want, rev.Definition.Service) {
				s.Errorf("revision %d is not what was written", rev.Number)
			}
		}
	}
}

func checkLockLost(s *bench) {
	store := s.open()
	s.put(store, "web", "1") // the lock was used here, too
	c, _, out := s.start("lock")
	if got := next(out); got != "locked" {
		s.Fatalf("the process reports %q", got)
	}
	s.must(c.Process.Kill())
	_ = c.Wait()
	begun := time.Now()
	for {
		unlock, err := store.Lock(s.Context())
		if err == nil {
			unlock()
			s.Logf("the lock was lost after %v", time.Since(begun).Round(time.Millisecond))
			return
		}
		if time.Since(begun) > s.LockLost {
			s.Fatalf("after %v the lock of a process that was killed still holds: %v", s.LockLost, err)
		}
	}
}
