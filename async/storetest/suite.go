package storetest

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
)

// Subject is a store under test. A field that is nil stands for what the store
// cannot do: the checks that need it are skipped.
type Subject struct {
	// Place makes an empty store and returns how Open finds it. Required.
	Place func(t testing.TB) string

	// Open opens the store at a place. It is also called in other processes.
	// Required.
	Open func(place string) (async.Store, error)

	// Shared is true if a store may be open several times at once. The attempts of
	// an owner are lost then Lease after it was renewed last, or else when the store
	// is opened again.
	Shared bool
	Lease  time.Duration

	// OpenAhead is Open with a system whose clock is ahead, or behind if that is
	// negative.
	OpenAhead func(place string, ahead time.Duration) (async.Store, error)

	// MakeNewer makes the store at a place, which is not open, look like one that a
	// newer Usher has written.
	MakeNewer func(t testing.TB, place string)

	// FillDisk lets the disk be full for this process, until lift is called. It is
	// called in another process than the suite's.
	FillDisk func(place string) (lift func() error, err error)

	// Patience is how long the suite waits for what takes time. Default: 30 s.
	Patience time.Duration
}

// Run runs the suite. It calls subject for each check; what it sets up is to be
// cleaned up with t.Cleanup.
func Run(t *testing.T, subject func(t *testing.T) Subject) {
	t.Helper()
	if role := os.Getenv(roleVariable); role != "" {
		child(t, subject(t), role)
		return
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			s := &bench{Subject: subject(t), T: t, test: strings.SplitN(t.Name(), "/", 2)[0]}
			if s.Place == nil || s.Open == nil {
				t.Fatal("a Subject needs Place and Open")
			}
			if s.Patience == 0 {
				s.Patience = 30 * time.Second
			}
			if c.needs != "" && !s.has(c.needs) {
				t.Skip("the store has no ", c.needs)
			}
			s.place = s.Place(t)
			c.run(s)
		})
	}
}

func (s *bench) has(what string) bool {
	switch what {
	case "OpenAhead":
		return s.OpenAhead != nil
	case "MakeNewer":
		return s.MakeNewer != nil
	case "FillDisk":
		return s.FillDisk != nil
	case "Shared":
		return s.Shared
	}
	return true
}

// check is one promise.
type check struct {
	name, needs string
	run         func(*bench)
}

// checks are in the order in which a new store should pass them.
var checks = []check{
	{"a task comes back as it was put", "", checkPut},
	{"a task survives the end of the store", "", checkReopen},
	{"a body that is cut off stores nothing", "", checkCutOff},
	{"an unknown id is not found", "", checkUnknown},
	{"the oldest task is claimed first", "", checkOldest},
	{"a task is claimed once", "", checkClaimOnce},
	{"an attempt has one outcome", "", checkSettle},
	{"an answer that is cut off leaves the attempt", "", checkAnswerCutOff},
	{"a task that is tried again waits for its time", "", checkDelay},
	{"an idempotency key stands for one task", "", checkKey},
	{"of equal puts at the same time one is accepted", "", checkKeyRace},
	{"a queue takes so many unfinished tasks", "", checkLimit},
	{"the tasks of a group run in order, one at a time", "", checkGroup},
	{"an exclusive name runs once over all queues", "", checkExclusive},
	{"a task expires before its first attempt only", "", checkExpires},
	{"an outcome is kept as long as it should be", "", checkKeep},
	{"a task is cancelled", "", checkCancel},
	{"cancelling at the same time as all else gives one outcome", "", checkCancelRace},
	{"a task that has ended is tried again", "", checkRetry},
	{"a task that has ended is purged", "", checkPurge},
	{"lists have pages", "", checkList},
	{"progress is told", "", checkProgress},
	{"changes are told", "", checkWatch},
	{"every end is told by a callback", "", checkCallback},
	{"the attempts of an owner that is gone are ended", "", checkRecover},
	{"an owner that stands still loses its attempts", "Shared", checkLease},
	{"whatever is done, all views agree", "", checkRandom},
	{"a context that has ended changes nothing", "", checkContext},
	{"nothing is done after Close", "", checkClosed},
	{"jumps of the clock", "OpenAhead", checkClock},
	{"a store of a newer version is refused", "MakeNewer", checkNewer},
	{"a full disk", "FillDisk", checkFull},
	{"a killed process loses nothing", "", checkKill},
}

// bench is a Subject within a check.
type bench struct {
	Subject
	*testing.T
	place string
	test  string
}

const owner = "owner"

// open opens the store. It is closed with the test.
func (s *bench) open() async.Store {
	s.Helper()
	store, err := s.Open(s.place)
	if err != nil {
		s.Fatalf("Open: %v", err)
	}
	s.Cleanup(func() { _ = store.Close() })
	return store
}

// reopen closes the store and opens it again.
func (s *bench) reopen(store async.Store) async.Store {
	s.Helper()
	if err := store.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	return s.open()
}

func (s *bench) put(store async.Store, n async.NewTask, body string) async.Task {
	s.Helper()
	task, existed, err := store.Put(s.Context(), n, strings.NewReader(body))
	if err != nil || existed {
		s.Fatalf("Put: existed %t, error %v", existed, err)
	}
	return task
}

// puts adds tasks whose clients are the numbers from 0.
func (s *bench) puts(store async.Store, n async.NewTask, count int) []async.Task {
	s.Helper()
	tasks := make([]async.Task, count)
	for k := range tasks {
		n.Client = strconv.Itoa(k)
		tasks[k] = s.put(store, n, n.Client)
	}
	return tasks
}

func (s *bench) claim(store async.Store, queue string, n int) []async.Task {
	s.Helper()
	tasks, err := store.Claim(s.Context(), owner, queue, n)
	if err != nil {
		s.Fatalf("Claim: %v", err)
	}
	return tasks
}

// claimOne claims the task that must be the next one.
func (s *bench) claimOne(store async.Store, queue string, want async.Task) async.Task {
	s.Helper()
	tasks := s.claim(store, queue, 1)
	if len(tasks) != 1 || tasks[0].ID != want.ID {
		s.Fatalf("%s was claimed, want client %s", clients(tasks), want.Client)
	}
	return tasks[0]
}

// claimSoon claims a task when its time comes.
func (s *bench) claimSoon(store async.Store, queue string) async.Task {
	s.Helper()
	var tasks []async.Task
	s.await("a task to claim", func() bool {
		tasks = s.claim(store, queue, 1)
		return len(tasks) == 1
	})
	return tasks[0]
}

func (s *bench) claimNone(store async.Store, queue string) {
	s.Helper()
	if tasks := s.claim(store, queue, 1); len(tasks) != 0 {
		s.Fatalf("%s was claimed, want none", clients(tasks))
	}
}

func (s *bench) settle(store async.Store, t async.Task, o async.Outcome) async.Task {
	s.Helper()
	task, err := store.Settle(s.Context(), t.ID, t.Attempt, o)
	if err != nil {
		s.Fatalf("Settle of client %s, attempt %d: %v", t.Client, t.Attempt, err)
	}
	return task
}

func (s *bench) get(store async.Store, id string) async.Task {
	s.Helper()
	task, err := store.Get(s.Context(), id)
	if err != nil {
		s.Fatalf("Get: %v", err)
	}
	return task
}

func (s *bench) wantState(store async.Store, t async.Task, want async.State) async.Task {
	s.Helper()
	task := s.get(store, t.ID)
	if task.State != want {
		s.Fatalf("client %s is %s, want %s", t.Client, task.State, want)
	}
	return task
}

func (s *bench) wantErr(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

func (s *bench) queue(store async.Store, name string) async.Queue {
	s.Helper()
	queues, err := store.Queues(s.Context())
	if err != nil {
		s.Fatalf("Queues: %v", err)
	}
	return queues[name]
}

func (s *bench) list(store async.Store, f async.Filter) (all []async.Task) {
	s.Helper()
	for {
		page, err := store.List(s.Context(), f)
		if err != nil {
			s.Fatalf("List: %v", err)
		}
		if f.Limit > 0 && len(page.Tasks) > f.Limit {
			s.Fatalf("a page has %d tasks, want %d at most", len(page.Tasks), f.Limit)
		}
		all = append(all, page.Tasks...)
		if page.Next == "" {
			return all
		}
		if len(page.Tasks) == 0 {
			s.Fatal("a page is empty, and there is another one")
		}
		f.After = page.Next
	}
}

// sweep sweeps until there is nothing to do.
func (s *bench) sweep(store async.Store) (n int) {
	s.Helper()
	for {
		k, err := store.Sweep(s.Context())
		if err != nil {
			s.Fatalf("Sweep: %v", err)
		}
		if k == 0 {
			return n
		}
		n += k
	}
}

func (s *bench) await(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(s.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("after %v there is not %s", s.Patience, what)
		}
	}
}

func (s *bench) readAll(r io.ReadCloser, err error) string {
	s.Helper()
	if err != nil {
		s.Fatalf("a body cannot be opened: %v", err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		s.Fatalf("a body cannot be read: %v", err)
	}
	return string(b)
}

func clients(tasks []async.Task) string {
	if len(tasks) == 0 {
		return "none"
	}
	var names []string
	for _, t := range tasks {
		names = append(names, t.Client)
	}
	return "client " + strings.Join(names, ", ")
}

func ids(tasks []async.Task) []string {
	var all []string
	for _, t := range tasks {
		all = append(all, t.ID)
	}
	slices.Sort(all)
	return all
}

func answer(status int, body string) *async.Answer {
	return &async.Answer{Status: status, Body: io.NopCloser(strings.NewReader(body)), Size: int64(len(body))}
}

// cutOff is a body that ends with an error after so many bytes.
type cutOff struct{ left int }

var errCutOff = errors.New("the body was cut off")

func (c *cutOff) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, errCutOff
	}
	n := min(len(b), c.left)
	c.left -= n
	return n, nil
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
