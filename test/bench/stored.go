package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/file"
	"github.com/caddy-usher/usher/test/bench/load"
)

const (
	// bodySize is the length of the body of each task.
	bodySize = 1 << 10

	// taskSlots is how many tasks are executed at the same time.
	taskSlots = 16
)

// A keeper is a store of tasks, with the Caddy that can use it.
type keeper struct {
	name    string
	program string

	// option is that of async for a store of its own, which a directory is for.
	option func(home string) string

	// direct is true if fill writes into the store, and not over HTTP.
	direct bool

	rate, p50, p99, executed       series
	heap, anonymous, answers, goOn series
}

// stored measures stored requests, with each store.
func (b *bench) stored() error {
	keepers := []*keeper{{name: "file", program: b.binaries.caddy, option: func(string) string { return "store file" }, direct: true}}
	if b.binaries.postgres == "" {
		b.say("PostgreSQL is not installed: its figures are left out")
	} else {
		dsn, err := b.startPostgres()
		if err != nil {
			return err
		}
		program := filepath.Join(b.dir, "caddy-postgres")
		if err := b.goTool("build", "-C", "postgres", "-ldflags=-s -w", "-o", program, "./caddy"); err != nil {
			return err
		}
		keepers = append(keepers, &keeper{name: "PostgreSQL", program: program, option: func(home string) string {
			return fmt.Sprintf("store postgres %s {\nschema \"%s\"\n}", dsn, filepath.Base(home))
		}})
	}
	if err := b.accepting(keepers); err != nil {
		return fmt.Errorf("accepting: %w", err)
	}
	for _, k := range keepers {
		if err := b.executing(k); err != nil {
			return fmt.Errorf("executing, %s: %w", k.name, err)
		}
	}
	b.compared(keepers, []kept{
		{fmt.Sprintf("tasks accepted, synced, %d clients", clients), func(k *keeper) series { return k.rate }, perSecond, atLeast("P15", 5000, "≥ 5000/s")},
		{"one client alone, p50", func(k *keeper) series { return k.p50 }, milli, atMost("P15", 3e6, "≤ 3 ms")},
		{"one client alone, p99", func(k *keeper) series { return k.p99 }, milli, nil},
		{fmt.Sprintf("tasks executed, %d at a time", taskSlots), func(k *keeper) series { return k.executed }, perSecond, nil},
	})
	return b.pending(keepers)
}

// kept is a figure of each store.
type kept struct {
	what  string
	of    func(*keeper) series
	unit  unit
	limit *budget // of the first store
}

// compared adds rows for the first store, beside the others.
func (b *bench) compared(keepers []*keeper, rows []kept) {
	for _, r := range rows {
		b.figure(r.what, r.unit, r.of(keepers[0]), beside(r.unit, r.of, keepers[1:]), r.limit)
	}
}

// beside are the figures of the other stores.
func beside(u unit, of func(*keeper) series, others []*keeper) string {
	var all []string
	for _, k := range others {
		all = append(all, u(of(k).median())+" "+k.name)
	}
	return strings.Join(all, ", ")
}

// keep starts a Caddy with one service, batch, that sleeps, and whose requests can
// be stored. home is the directory that has the store in files.
func (b *bench) keep(home string, k *keeper) (*server, error) {
	ports, err := b.freePorts(8)
	if err != nil {
		return nil, err
	}
	site := fmt.Sprintf("usher batch {\nbackend process %s\nconcurrency %d\nasync {\n%s\nmax_tasks 10000000\n}\n}", b.binaries.app, taskSlots, k.option(home))
	s, err := b.caddyIn(home, k.program, site, fmt.Sprintf("usher {\nports %d-%d\n}", ports, ports+7))
	if err != nil {
		return nil, err
	}
	// It listens before the configuration is in force.
	return s, s.awaitService("batch", "the service is there", func(status) bool { return true })
}

// home makes a directory for keep.
func (b *bench) home() (string, error) { return os.MkdirTemp(b.dir, "keeper-*") }

// hold lets no task of the service be executed, and release ends that.
func (s *server) hold() error {
	_, err := s.askAdmin(http.MethodPost, "/usher/services/batch/suspend", "application/json", []byte(`{"reason": "the benchmark"}`))
	return err
}

func (s *server) release() error {
	_, err := s.askAdmin(http.MethodPost, "/usher/services/batch/resume", "", nil)
	return err
}

// accepting measures how fast tasks are accepted while none is executed.
func (b *bench) accepting(keepers []*keeper) error {
	servers := make([]*server, len(keepers))
	for i, k := range keepers {
		home, err := b.home()
		if err != nil {
			return err
		}
		if servers[i], err = b.keep(home, k); err != nil {
			return err
		}
		if err := servers[i].hold(); err != nil {
			return err
		}
	}
	for range b.rounds(7, 3) {
		for i, k := range keepers {
			dial := load.Store(servers[i].address, "/", bodySize)
			many, err := load.Closed(b.span(5*time.Second, 2*time.Second), clients, dial)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", k.name, err, servers[i].output())
			}
			one, err := load.Closed(b.span(2*time.Second, time.Second), 1, dial)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", k.name, err, servers[i].output())
			}
			k.rate = append(k.rate, many.Rate())
			k.p50, k.p99 = append(k.p50, float64(one.Quantile(0.5))), append(k.p99, float64(one.Quantile(0.99)))
		}
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	for i, k := range keepers {
		// It was counted what clients were told: the store has it all.
		q, err := servers[i].batch()
		if err != nil {
			return err
		}
		b.say("%s: %d tasks are pending", k.name, q.Pending)
		servers[i].stop()
	}
	return nil
}

// batch is what a Caddy tells of the tasks of the service.
func (s *server) batch() (q taskCounts, err error) {
	text, err := s.askAdmin(http.MethodGet, "/usher/tasks?limit=1", "", nil)
	if err != nil {
		return q, err
	}
	var list struct{ Queues []taskCounts }
	if err := json.Unmarshal(text, &list); err != nil {
		return q, err
	}
	for _, q := range list.Queues {
		if q.Service == "batch" {
			return q, nil
		}
	}
	return q, nil
}

type taskCounts struct {
	Service                      string
	Pending, Running, Done, Dead int
}

// executing measures how fast tasks are executed that answer at once.
func (b *bench) executing(k *keeper) error {
	for range b.rounds(5, 2) {
		home, err := b.home()
		if err != nil {
			return err
		}
		s, err := b.keep(home, k)
		if err != nil {
			return err
		}
		if err := s.hold(); err != nil {
			return err
		}
		before, err := s.batch()
		if err != nil {
			return err
		}
		if _, err := load.Closed(b.span(4*time.Second, 2*time.Second), clients, load.Store(s.address, "/", bodySize)); err != nil {
			return err
		}
		if err := s.release(); err != nil {
			return err
		}
		var began time.Time
		var first, last taskCounts
		for end := time.Now().Add(b.span(6*time.Second, 3*time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if last, err = s.batch(); err != nil {
				return err
			}
			if last.Pending == 0 {
				break
			}
			if began.IsZero() && last.Done > before.Done {
				began, first = time.Now(), last
			}
		}
		if last.Done == first.Done {
			return fmt.Errorf("no task was executed: %+v\n%s", last, s.output())
		}
		k.executed = append(k.executed, float64(last.Done-first.Done)/time.Since(began).Seconds())
		s.stop()
	}
	return nil
}

// pending measures what many tasks cost that are pending: memory, and the start
// after Caddy was killed.
func (b *bench) pending(keepers []*keeper) error {
	n := 1_000_000
	if b.short {
		n = 100_000
		// The others are filled over HTTP, which takes too long.
		keepers = keepers[:1]
	}
	for _, k := range keepers {
		if err := b.pendingIn(k, n); err != nil {
			return fmt.Errorf("%d pending, %s: %w", n, k.name, err)
		}
	}
	b.compared(keepers, []kept{
		{fmt.Sprintf("memory of a Caddy with %d pending tasks, above one without", n), func(k *keeper) series { return k.heap }, mebi, atMost("P16", 50e6, "≤ 50 MB")},
		{"the same, with what the collector has not given back", func(k *keeper) series { return k.anonymous }, mebi, atMost("P16", 50e6, "≤ 50 MB")},
		{"start after kill -9, until a task is accepted", func(k *keeper) series { return k.answers }, milli, atMost("P16", 5e9, "≤ 5 s")},
		{"start after kill -9, until a task is executed", func(k *keeper) series { return k.goOn }, milli, atMost("P16", 5e9, "≤ 5 s")},
	})
	return nil
}

func (b *bench) pendingIn(k *keeper, n int) error {
	b.say("%s: %d tasks", k.name, n)
	home, err := b.home()
	if err != nil {
		return err
	}
	// The instance never answers these. So all slots are taken, and the next tasks
	// wait in the queue.
	path := "/hold?gate=" + filepath.Join(home, "never")
	s, err := b.keep(home, k)
	if err != nil {
		return err
	}
	emptyHeap, emptyAnonymous, err := s.bothMemories()
	if err != nil {
		return err
	}
	s.stop()
	if k.direct {
		err = b.fill(home, path, n)
	} else {
		err = b.fillOverHTTP(home, k, path, n)
	}
	if err != nil {
		return err
	}
	var began time.Time
	for i := range b.rounds(5, 2) + 1 {
		if i > 0 {
			began = time.Now()
			s.kill()
		}
		if s, err = b.keep(home, k); err != nil {
			return err
		}
		accepts, err := load.Store(s.address, path, bodySize)()
		if err != nil {
			return err
		}
		err = accepts.Ask()
		accepts.Close()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, s.output())
		}
		accepted := time.Now()
		if err := s.awaitRunning(began); err != nil {
			return err
		}
		if i > 0 {
			k.answers, k.goOn = append(k.answers, float64(accepted.Sub(began))), append(k.goOn, float64(time.Since(began)))
		}
		if err := s.awaitBatch("all slots are taken", func(q taskCounts) bool { return q.Running == taskSlots }); err != nil {
			return err
		}
		if q, err := s.batch(); err != nil || q.Pending+q.Running != n+i+1 {
			return fmt.Errorf("%d tasks were accepted, and the store tells of %+v, error %v", n+i+1, q, err)
		}
		heap, anonymous, err := s.bothMemories()
		if err != nil {
			return err
		}
		k.heap, k.anonymous = append(k.heap, heap-emptyHeap), append(k.anonymous, anonymous-emptyAnonymous)
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	s.stop()
	return nil
}

// bothMemories are that in use, and all that belongs to no file: the database is
// mapped, and the kernel takes its pages back.
func (s *server) bothMemories() (heap, anonymous float64, err error) {
	if heap, err = s.memory(); err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return heap, kib * 1024, err
		}
	}
	return 0, 0, errors.New("the kernel does not tell the anonymous memory of a process")
}

// awaitRunning waits until an attempt has begun after that time.
func (s *server) awaitRunning(after time.Time) error {
	return await(time.Minute, "a task is executed", func() bool {
		text, err := s.askAdmin(http.MethodGet, "/usher/tasks?service=batch&state=running&limit=1000", "", nil)
		if err != nil {
			return false
		}
		var list struct{ Tasks []struct{ Started time.Time } }
		if json.Unmarshal(text, &list) != nil {
			return false
		}
		return slices.ContainsFunc(list.Tasks, func(t struct{ Started time.Time }) bool { return t.Started.After(after) })
	})
}

func (s *server) awaitBatch(what string, cond func(taskCounts) bool) error {
	var last taskCounts
	err := await(time.Minute, what, func() bool {
		q, err := s.batch()
		last = q
		return err == nil && cond(q)
	})
	if err != nil {
		return fmt.Errorf("%w (%+v)\n%s", err, last, s.output())
	}
	return nil
}

// fill writes n tasks into the store in files of a Caddy that does not run, as that
// Caddy would: with the same package, synced. Over HTTP it would take longer, with the
// same result.
func (b *bench) fill(home, path string, n int) error {
	s, err := file.Open(filepath.Join(home, "caddy", "usher", "tasks"), file.Options{})
	if err != nil {
		return err
	}
	body := bytes.Repeat([]byte("b"), bodySize)
	task := async.NewTask{
		Queue: "batch", Expires: 72 * time.Hour, Keep: 24 * time.Hour,
		Request: async.Request{
			Method: http.MethodPost, URI: path, Host: "127.0.0.1:8080", Remote: "127.0.0.1:40000",
			Header: http.Header{"Content-Type": {"text/plain"}, "User-Agent": {"bench"}},
		},
	}
	var (
		next   atomic.Int64
		all    sync.WaitGroup
		failed atomic.Pointer[error]
	)
	for range 512 {
		all.Go(func() {
			for next.Add(1) <= int64(n) && failed.Load() == nil {
				if _, _, err := s.Put(b.ctx, task, bytes.NewReader(body)); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return errors.Join(*err, s.Close())
	}
	return s.Close()
}

// fillOverHTTP hands n tasks in, while none is executed.
func (b *bench) fillOverHTTP(home string, k *keeper, path string, n int) error {
	s, err := b.keep(home, k)
	if err != nil {
		return err
	}
	if err := s.hold(); err != nil {
		return err
	}
	if _, err := load.Times(n, clients, load.Store(s.address, path, bodySize)); err != nil {
		return fmt.Errorf("%w\n%s", err, s.output())
	}
	if err := s.release(); err != nil {
		return err
	}
	s.stop()
	return nil
}
