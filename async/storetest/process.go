package storetest

import (
	"bufio"
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

	"github.com/caddy-usher/usher/async"
)

// How a process is told what to do. The place follows the role.
const (
	roleVariable  = "USHER_STORETEST_ROLE"
	placeVariable = "USHER_STORETEST_PLACE"
)

// reportPrefix is before what a process reports: the test's own output is there, too.
const reportPrefix = "storetest: "

// start runs the test again as another process with a role.
func (s *bench) start(role string) (*exec.Cmd, io.Reader) {
	s.Helper()
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	c := exec.Command(self, "-test.run", "^"+s.test+"$", "-test.timeout", "5m")
	c.Env = append(os.Environ(), roleVariable+"="+role, placeVariable+"="+s.place)
	out, err := c.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		s.Fatal(err)
	}
	return c, out
}

// child is a process that the suite has started.
func child(t *testing.T, s Subject, role string) {
	place := os.Getenv(placeVariable)
	store, err := s.Open(place)
	if err != nil {
		report("error", err)
		return
	}
	switch role {
	case "work":
		work(t, store)
	case "fill":
		fill(t, s, store, place)
	}
}

var reporting sync.Mutex

// report writes a line, at once.
func report(words ...any) {
	reporting.Lock()
	defer reporting.Unlock()
	_, _ = fmt.Fprintf(os.Stdout, "%s%s", reportPrefix, fmt.Sprintln(words...))
}

// work uses the store until the process is killed. It reports what was promised:
// only after the store has.
func work(t *testing.T, store async.Store) {
	const (
		writers = 16
		runners = 8
	)
	ctx := t.Context()
	name := "process " + strconv.Itoa(os.Getpid())
	for {
		n, err := store.Recover(ctx, name, func(async.Task) async.Outcome {
			return async.Outcome{State: async.Pending, Reason: "lost"}
		})
		if err != nil {
			report("error", err)
			return
		}
		if n == 0 {
			break
		}
	}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for k := 0; ; k++ {
				size := 100
				if k%20 == 0 {
					size = 100 << 10
				}
				n := async.NewTask{Queue: "q", Key: fmt.Sprint(os.Getpid(), w, k)}
				if w%2 == 0 {
					n.Group = "g" + strconv.Itoa(w)
				}
				task, _, err := store.Put(ctx, n, strings.NewReader(strings.Repeat("b", size)))
				if err != nil {
					report("error", err)
					return
				}
				report("put", task.ID, group(task), size)
			}
		})
	}
	for r := range runners {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(r)))
			for {
				tasks, err := store.Claim(ctx, name, "q", 1+random.IntN(3))
				if err != nil {
					report("error", err)
					return
				}
				for _, task := range tasks {
					report("claimed", task.ID, group(task), task.Attempt)
					o := async.Outcome{State: async.Done, Answer: answer(200, task.ID)}
					if random.IntN(4) == 0 {
						o = async.Outcome{State: async.Pending}
					}
					if _, err := store.Settle(ctx, task.ID, task.Attempt, o); err != nil {
						report("error", err)
						return
					}
					report("settled", task.ID, o.State)
				}
			}
		})
	}
	all.Wait()
}

func group(t async.Task) string {
	if t.Group == "" {
		return "-"
	}
	return t.Group
}

// ledger is what processes have reported.
type ledger struct {
	puts    map[string]int // to the size of the body
	ended   map[string]bool
	begun   map[string]int // the latest attempt that was claimed
	problem error
}

// read reads what a process reports until it ends. It calls onPut at the first task
// that was accepted.
func (l *ledger) read(out io.Reader, onPut func()) {
	onPut = sync.OnceFunc(onPut)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), reportPrefix)
		if !ok {
			continue
		}
		w := strings.Fields(text)
		switch w[0] {
		case "error":
			l.problem = errors.New(text)
		case "put":
			l.puts[w[1]], _ = strconv.Atoi(w[3])
			onPut()
		case "claimed":
			attempt, _ := strconv.Atoi(w[3])
			if attempt <= l.begun[w[1]] || l.ended[w[1]] {
				l.problem = fmt.Errorf("task %s: attempt %d follows %d, ended %t", w[1], attempt, l.begun[w[1]], l.ended[w[1]])
			}
			l.begun[w[1]] = attempt
		case "settled":
			if w[2] == async.Done.String() {
				l.ended[w[1]] = true
			}
		}
	}
}

// checkKill kills processes that use the store, and looks whether the store keeps
// what it has promised to them.
func checkKill(s *bench) {
	const rounds = 8
	l := &ledger{puts: make(map[string]int), ended: make(map[string]bool), begun: make(map[string]int)}
	for range rounds {
		c, out := s.start("work")
		kill := func() {
			time.AfterFunc(time.Duration(20+rand.IntN(200))*time.Millisecond, func() { _ = c.Process.Kill() })
		}
		watchdog := time.AfterFunc(s.Patience, func() { _ = c.Process.Kill() })
		before := len(l.puts)
		l.read(out, kill)
		watchdog.Stop()
		_ = c.Wait() // it was killed
		if l.problem != nil {
			s.Fatal(l.problem)
		}
		if len(l.puts) == before {
			s.Fatal("a process has put nothing before it was killed")
		}
		if s.Shared {
			time.Sleep(s.Lease)
		}
	}
	s.Logf("%d tasks were accepted, %d done", len(l.puts), len(l.ended))
	store := s.open()
	s.recover(store, owner, func(async.Task) async.Outcome { return async.Outcome{State: async.Pending} })
	s.compareLedger(store, l)
	// The rest runs to its end: each group in order, and nothing twice.
	last := make(map[string]time.Time)
	for {
		tasks := s.claim(store, "q", 10)
		if len(tasks) == 0 {
			break
		}
		for _, t := range tasks {
			if t.Group != "" && t.Accepted.Before(last[t.Group]) {
				s.Errorf("group %s: a task follows a later one", t.Group)
			}
			last[t.Group] = t.Accepted
			s.settle(store, t, async.Outcome{State: async.Done})
		}
	}
	if q := s.queue(store, "q"); q.Unfinished() != 0 || q.States[async.Done] < len(l.puts) {
		s.Errorf("at the end the queue is %+v, and %d tasks were accepted", q, len(l.puts))
	}
}

// compareLedger compares the store with what was reported.
func (s *bench) compareLedger(store async.Store, l *ledger) {
	s.Helper()
	for id, size := range l.puts {
		t := s.get(store, id)
		if l.ended[id] != (t.State == async.Done) && l.ended[id] {
			s.Fatalf("task %s is %s, and was done", id, t.State)
		}
		if t.Attempt < l.begun[id] {
			s.Errorf("task %s has attempt %d, and had %d", id, t.Attempt, l.begun[id])
		}
		if got := s.readAll(store.Body(s.Context(), id)); len(got) != size {
			s.Errorf("the body of task %s has %d bytes, want %d", id, len(got), size)
		}
		if l.ended[id] {
			r, err := store.Result(s.Context(), id)
			if err != nil {
				s.Fatalf("Result: %v", err)
			}
			if got := s.readAll(r.Body, nil); got != id {
				s.Errorf("the answer to task %s is %q", id, got)
			}
		}
	}
}

// fill puts tasks until the disk is full.
func fill(t *testing.T, s Subject, store async.Store, place string) {
	ctx := t.Context()
	lift, err := s.FillDisk(place)
	if err != nil {
		report("error", err)
		return
	}
	var accepted []string
	for size := 1 << 10; ; size = 1<<10 + (100<<10)*(len(accepted)%2) {
		task, _, err := store.Put(ctx, async.NewTask{Queue: "q"}, strings.NewReader(strings.Repeat("f", size)))
		if err != nil {
			report("full", err)
			break
		}
		accepted = append(accepted, task.ID)
		if len(accepted) > 1<<20 {
			report("error", "the disk is never full")
			return
		}
	}
	for _, id := range accepted {
		body, err := store.Body(ctx, id)
		if err != nil {
			report("error", err)
			return
		}
		_, err = io.Copy(io.Discard, body)
		body.Close()
		if err != nil {
			report("error", err)
			return
		}
	}
	if page, err := store.List(ctx, async.Filter{Limit: 1 << 20}); err != nil || len(page.Tasks) < len(accepted) {
		report("error", "after the disk was full", len(page.Tasks), "tasks are listed, error", err)
		return
	}
	report("readable", len(accepted))
	if err := lift(); err != nil {
		report("error", err)
		return
	}
	task, _, err := store.Put(ctx, async.NewTask{Queue: "q"}, strings.NewReader(strings.Repeat("f", large)))
	if err != nil {
		report("error", err)
		return
	}
	report("again", task.ID)
	for _, id := range append(accepted, task.ID) {
		report("put", id, "-", 0)
	}
}

func checkFull(s *bench) {
	c, out := s.start("fill")
	watchdog := time.AfterFunc(s.Patience, func() { _ = c.Process.Kill() })
	defer watchdog.Stop()
	text, err := io.ReadAll(out)
	if err != nil {
		s.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		s.Fatalf("the process: %v\n%s", err, text)
	}
	var seen, puts []string
	for line := range strings.Lines(string(text)) {
		report, ok := strings.CutPrefix(strings.TrimSpace(line), reportPrefix)
		if !ok {
			continue
		}
		w := strings.Fields(report)
		if w[0] == "put" {
			puts = append(puts, w[1])
			continue
		}
		seen = append(seen, w[0])
		s.Log(report)
	}
	if !slices.Equal(seen, []string{"full", "readable", "again"}) {
		s.Fatalf("the process has reported %q", seen)
	}
	store := s.open()
	for _, id := range puts {
		s.readAll(store.Body(s.Context(), id))
	}
}
