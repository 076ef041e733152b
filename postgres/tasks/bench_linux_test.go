package tasks

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/pgserver"
)

// each calls f for all numbers below n, with so many clients at a time, and reports how
// long the calls took.
func each(b *testing.B, clients, n int, f func(k int)) {
	b.Helper()
	took := make([]time.Duration, n)
	var (
		next atomic.Int64
		all  sync.WaitGroup
	)
	b.ResetTimer()
	for range clients {
		all.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				began := time.Now()
				f(k)
				took[k] = time.Since(began)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tasks/s")
	slices.Sort(took)
	b.ReportMetric(float64(took[n/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[n*99/100].Microseconds())/1000, "p99-ms")
}

func benchStore(b *testing.B) async.Store {
	b.Helper()
	db := pgserver.Start(b, pgserver.Options{})
	s, err := opened(db.DSN()+" bench", "")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

var kilobyte = bytes.Repeat([]byte("b"), 1024)

func benchPut(b *testing.B, s async.Store) {
	n := async.NewTask{
		Queue:   "thumbs",
		Request: async.Request{Method: "POST", URI: "/thumbs?size=200", Host: "example.com", Header: map[string][]string{"Content-Type": {"image/png"}}},
		Expires: 72 * time.Hour, Keep: 24 * time.Hour, MaxTasks: 10_000_000,
	}
	if _, _, err := s.Put(b.Context(), n, bytes.NewReader(kilobyte)); err != nil {
		b.Error(err)
	}
}

// BenchmarkAccept measures how long it takes to accept tasks of 1 KiB, synced, with so
// many clients at a time. It is that of async/file.
func BenchmarkAccept(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := benchStore(b)
			each(b, clients, b.N, func(int) { benchPut(b, s) })
		})
	}
}

// BenchmarkExecute measures how long it takes to claim a task and to record its
// outcome, with so many at a time.
func BenchmarkExecute(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := benchStore(b)
			var filling sync.WaitGroup
			for w := range 64 {
				filling.Go(func() {
					for k := w; k < b.N; k += 64 {
						benchPut(b, s)
					}
				})
			}
			filling.Wait()
			each(b, clients, b.N, func(int) {
				tasks, err := s.Claim(b.Context(), "owner", "thumbs", 1)
				if err != nil || len(tasks) != 1 {
					b.Errorf("%d tasks, error %v", len(tasks), err)
					return
				}
				o := async.Outcome{State: async.Done, Answer: &async.Answer{Status: 200, Body: nopCloser{bytes.NewReader(kilobyte)}, Size: 1024}}
				if _, err := s.Settle(b.Context(), tasks[0].ID, tasks[0].Attempt, o); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }
