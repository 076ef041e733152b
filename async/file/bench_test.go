package file

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
)

var benchPending = flag.Int("file.pending", 20_000, "how many tasks are pending in BenchmarkPending")

func accept(b *testing.B, s *Store, body []byte) {
	n := async.NewTask{
		Queue:   "thumbs",
		Request: async.Request{Method: "POST", URI: "/thumbs?size=200", Host: "example.com", Header: map[string][]string{"Content-Type": {"image/png"}}},
		Expires: 72 * time.Hour, Keep: 24 * time.Hour, MaxTasks: 10_000_000,
	}
	if _, _, err := s.Put(b.Context(), n, bytes.NewReader(body)); err != nil {
		b.Error(err)
	}
}

// BenchmarkAccept measures how long it takes to accept tasks of 1 KiB, synced, with
// so many clients at a time.
func BenchmarkAccept(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			body := bytes.Repeat([]byte("b"), 1024)
			took := make([]time.Duration, b.N)
			var (
				next atomic.Int64
				all  sync.WaitGroup
			)
			b.ResetTimer()
			for range clients {
				all.Go(func() {
					for {
						k := next.Add(1) - 1
						if k >= int64(b.N) {
							return
						}
						began := time.Now()
						accept(b, s, body)
						took[k] = time.Since(began)
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

const pendingVariable = "USHER_FILE_PENDING"

// measured is what another process tells of a store with many pending tasks.
type measured struct {
	Open, Queues, Claim   time.Duration
	Heap, Anonymous, Size uint64 // bytes
}

// BenchmarkPending measures the memory, and the start after kill -9, with many
// pending tasks: -file.pending says how many.
func BenchmarkPending(b *testing.B) {
	if dir := os.Getenv(pendingVariable); dir != "" {
		lookAt(b, dir)
		return
	}
	dir := b.TempDir()
	fillAndKill(b, dir)
	for b.Loop() {
		m := look(b, dir)
		b.ReportMetric(float64(m.Open.Milliseconds()), "open-ms")
		b.ReportMetric(float64(m.Queues.Microseconds())/1000, "queues-ms")
		b.ReportMetric(float64(m.Claim.Microseconds())/1000, "claim-ms")
		b.ReportMetric(float64(m.Heap)/(1<<20), "heap-MB")
		b.ReportMetric(float64(m.Anonymous)/(1<<20), "anonymous-MB")
		b.ReportMetric(float64(m.Size)/(1<<20), "file-MB")
	}
}

// again runs this benchmark in another process.
func again(b *testing.B, dir, role string) (*exec.Cmd, io.Reader) {
	c := exec.Command(os.Args[0], "-test.run", "^$", "-test.bench", "^BenchmarkPending$", "-test.benchtime", "1x", "-file.pending", strconv.Itoa(*benchPending))
	c.Env = append(os.Environ(), pendingVariable+"="+role+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	return c, out
}

// fillAndKill lets another process accept the tasks, and kills it.
func fillAndKill(b *testing.B, dir string) {
	c, out := again(b, dir, "fill:")
	buf := make([]byte, 64)
	if n, err := out.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "filled") {
		b.Fatalf("the other process says %q, error %v", buf[:n], err)
	}
	if err := c.Process.Kill(); err != nil {
		b.Fatal(err)
	}
	_ = c.Wait() // it was killed
}

func look(b *testing.B, dir string) (m measured) {
	c, out := again(b, dir, "look:")
	text, err := io.ReadAll(out)
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		b.Fatalf("%v\n%s", err, text)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				b.Fatal(err)
			}
			return m
		}
	}
	b.Fatalf("the other process says %q", text)
	return m
}

// lookAt is the other process.
func lookAt(b *testing.B, place string) {
	role, dir, _ := strings.Cut(place, ":")
	began := time.Now()
	s, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	if role == "fill" {
		body := bytes.Repeat([]byte("b"), 1024)
		var (
			next atomic.Int64
			all  sync.WaitGroup
		)
		for range 256 {
			all.Go(func() {
				for next.Add(1) <= int64(*benchPending) {
					accept(b, s, body)
				}
			})
		}
		all.Wait()
		fmt.Println("filled")
		select {} // until it is killed
	}
	m := measured{Open: time.Since(began)}
	began = time.Now()
	queues, err := s.Queues(b.Context())
	if err != nil || queues["thumbs"].Runnable != *benchPending {
		b.Fatalf("the queue is %+v, error %v", queues["thumbs"], err)
	}
	m.Queues = time.Since(began)
	began = time.Now()
	for range 100 {
		tasks, err := s.Claim(b.Context(), "owner", "thumbs", 1)
		if err != nil || len(tasks) != 1 {
			b.Fatalf("%d tasks, error %v", len(tasks), err)
		}
		if _, err := s.Settle(b.Context(), tasks[0].ID, tasks[0].Attempt, async.Outcome{State: async.Pending}); err != nil {
			b.Fatal(err)
		}
	}
	m.Claim = time.Since(began) / 200
	runtime.GC()
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m.Heap = stats.HeapAlloc
	m.Anonymous = anonymous(b)
	_ = s.view(func(t *tx) error { // it returns what the function does
		m.Size = uint64(t.Size())
		return nil
	})
	text, err := json.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\n%s\n", text)
	_ = s.Close()
	os.Exit(0) // without what a benchmark says
}

// anonymous is the memory of this process that is no file's, in bytes.
func anonymous(b *testing.B) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0 // not on this system
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			kb, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}
