// Package e2e tests the module for PostgreSQL from outside: real Caddys, real
// instances and a real server.
package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/postgres/pgserver"
	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-postgres-bin-")
	if err != nil {
		log.Fatal(err)
	}
	program := filepath.Join(dir, "caddy")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "../caddy").CombinedOutput(); err != nil {
		log.Fatalf("%v: %s", err, out)
	}
	os.Setenv("USHER_TEST_CADDY", program)
	// The harness builds the program of the instances from the main module.
	if err := os.Chdir("../.."); err != nil {
		log.Fatal(err)
	}
	harness.Main(run{m, dir})
}

// run removes the program after the tests.
type run struct {
	m   *testing.M
	dir string
}

func (r run) Run() int {
	code := r.m.Run()
	os.RemoveAll(r.dir)
	return code
}

const (
	groups   = 3
	perGroup = 60
	plain    = 120 // tasks without a group
)

// world is three Caddys with one store, and what clients were promised.
type world struct {
	t      *testing.T
	caddys []*harness.Caddy
	client http.Client

	mu       sync.Mutex
	accepted map[int]string // by number, to the path of the task
	count    atomic.Int64
}

// handIn hands in a task until one of the Caddys has accepted it. A client that gets no
// answer asks another one, with the same key.
func (w *world) handIn(seq, group int) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c := w.caddys[rand.IntN(len(w.caddys))]
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://%s/sleep?d=5ms&seq=%d", c.Addr, seq), nil)
		if err != nil {
			w.t.Error(err)
			return
		}
		for name, value := range map[string]string{"Prefer": "respond-async", "Idempotency-Key": strconv.Itoa(seq), "X-Seq": strconv.Itoa(seq)} {
			req.Header.Set(name, value)
		}
		// The same request at each of them has the same host.
		req.Host = "web.example"
		if group >= 0 {
			req.Header.Set("X-Group", strconv.Itoa(group))
		}
		res, err := w.client.Do(req)
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		switch res.StatusCode {
		case http.StatusAccepted:
			w.mu.Lock()
			w.accepted[seq] = res.Header.Get("Location")
			w.mu.Unlock()
			w.count.Add(1)
			return
		case http.StatusUnprocessableEntity, http.StatusNotFound:
			w.t.Errorf("task %d: %s: %s", seq, res.Status, text)
			return
		}
	}
	w.t.Errorf("task %d was accepted by no Caddy", seq)
}

// await waits until so many tasks were accepted.
func (w *world) await(n int64) {
	w.t.Helper()
	harness.Eventually(w.t, time.Minute, func() bool { return w.count.Load() >= n }, "%d tasks are accepted", n)
}

// state is that of a task, as a Caddy tells.
func (w *world) state(c *harness.Caddy, path string) string {
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+c.Addr+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = "web.example"
	res, err := w.client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	var s struct {
		State  string `json:"state"`
		Reason string `json:"reason"`
	}
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(s.State + " " + s.Reason)
}

// Tasks are handed in to three Caddys, while one of them is killed twice, one stands
// still beyond its lease, and PostgreSQL is restarted twice: each task that was accepted
// is done, none is executed twice at the same time, and groups keep their order.
func TestG15_SeveralCaddysLoseNoStoredRequest(t *testing.T) {
	db := pgserver.Start(t, pgserver.Options{})
	w := &world{
		t: t, accepted: make(map[int]string),
		client: http.Client{Timeout: 3 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	configs := make([]harness.Config, 3)
	w.caddys = harness.Together(t, len(configs))
	for k, c := range w.caddys {
		c.Setenv("PGSECRET", pgserver.Password)
		dsn := fmt.Sprintf("host=127.0.0.1 port=%s user='%s' password={env.PGSECRET} dbname=postgres sslmode=disable", db.Address[strings.LastIndex(db.Address, ":")+1:], pgserver.User)
		configs[k] = harness.Config{Site: harness.Usher("web", c.Backend(), "instances 0 2", "concurrency 4",
			"async {\nstore postgres \""+dsn+"\"\ngroup {header.X-Group}\nheaders X-Seq\nattempts 100\nbackoff 50ms 200ms\n}")}
		c.Start(configs[k])
	}
	var clients sync.WaitGroup
	for g := range groups {
		clients.Go(func() {
			for k := range perGroup {
				w.handIn(g*1000+k, g)
			}
		})
	}
	for half := range 2 {
		clients.Go(func() {
			for k := range plain / 2 {
				w.handIn(9000+half*100+k, -1)
			}
		})
	}
	all := int64(groups*perGroup + plain)
	killed, still, rest := w.caddys[0], w.caddys[1], w.caddys[2]
	w.await(all / 8)
	killed.Kill()
	killed.Start(configs[0])
	w.await(all / 4)
	db.Stop()
	db.Start()
	w.await(all * 3 / 8)
	still.Signal(syscall.SIGSTOP)
	stopped := time.Now()
	w.await(all / 2)
	db.Shutdown()
	db.Start()
	w.await(all * 5 / 8)
	killed.Kill()
	killed.Start(configs[0])
	clients.Wait()
	if len(w.accepted) != int(all) {
		t.Fatalf("%d tasks were accepted, want %d", len(w.accepted), all)
	}
	last := ""
	done := func(c *harness.Caddy) bool {
		for seq, path := range w.accepted {
			if s := w.state(c, path); s != "done" {
				last = fmt.Sprintf("task %d is %s", seq, s)
				return false
			}
		}
		return true
	}
	harness.Eventually(t, time.Minute, func() bool { return done(rest) }, "all tasks are done, %v after one Caddy stands still: %v", time.Since(stopped), &last)
	// Beyond its lease, it wakes up, and what it has to say is stale.
	if left := 22*time.Second - time.Since(stopped); left > 0 {
		time.Sleep(left)
	}
	still.Signal(syscall.SIGCONT)
	w.handIn(9999, -1)
	harness.Eventually(t, time.Minute, func() bool { return done(still) && done(rest) }, "all tasks stay done: %v", &last)
	w.checkJournals()
	for _, c := range w.caddys {
		if strings.Contains(c.RawLog(), pgserver.Password) || strings.Contains(c.RawLog(), "s3cret") {
			t.Errorf("the log of a Caddy has the password")
		}
	}
}

// checkJournals checks what the instances of all Caddys have noted.
func (w *world) checkJournals() {
	var entries harness.Journal
	for _, c := range w.caddys {
		for _, e := range c.Journal() {
			if e.Seq != "" {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b harness.Entry) int { return cmp.Compare(a.Time, b.Time) })
	inside := make(map[string]harness.Entry)
	executed := make(map[string]int)
	latest := make(map[int]int)
	dead := func(e harness.Entry) bool { return syscall.Kill(e.PID, 0) != nil }
	for _, e := range entries {
		seq, err := strconv.Atoi(e.Seq)
		if err != nil {
			w.t.Fatal(err)
		}
		switch e.Event {
		case "begin":
			// An instance that was killed notes no end.
			if before, ok := inside[e.Seq]; ok && !dead(before) {
				w.t.Errorf("task %s begins in process %d while process %d executes it", e.Seq, e.PID, before.PID)
			}
			inside[e.Seq] = e
			executed[e.Seq]++
			if seq < 9000 {
				group := seq / 1000
				if seq < latest[group] {
					w.t.Errorf("group %d: task %d begins after task %d", group, seq, latest[group])
				}
				latest[group] = seq
			}
		case "end":
			delete(inside, e.Seq)
		}
	}
	again := 0
	for seq := range w.accepted {
		switch n := executed[strconv.Itoa(seq)]; {
		case n == 0:
			w.t.Errorf("task %d is done, and was not executed", seq)
		case n > 1:
			again++
		}
	}
	w.t.Logf("%d tasks, %d of them executed more than once, one after the other", len(w.accepted), again)
}
