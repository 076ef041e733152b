package reserver

import (
	"fmt"
	"testing"
	"time"
)

func BenchmarkReserveRelease(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, bal := range []struct {
			name string
			b    Balance
		}{{"least_loaded", LeastLoaded}, {"oldest", Oldest}, {"random", Random}} {
			b.Run(fmt.Sprintf("%s/%d", bal.name, n), func(b *testing.B) {
				s := New(Options{MaxWaiting: 10, Balance: bal.b}, nil, hooks{})
				for k := range n {
					s.Add(fmt.Sprint(k), "", "", "", 10)
				}
				var r Reservation
				b.ReportAllocs()
				for b.Loop() {
					if ok, _ := s.Reserve(&r, Ask{}); !ok {
						b.Fatal("no slot")
					}
					r.Release(Answered)
				}
			})
		}
	}
}

func BenchmarkReserveReleaseContended(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Options{MaxWaiting: 10}, nil, hooks{})
			for k := range n {
				s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			b.ReportAllocs()
			b.SetParallelism(1)
			b.RunParallel(func(pb *testing.PB) {
				var r Reservation
				for pb.Next() {
					if ok, _ := s.Reserve(&r, Ask{}); !ok {
						b.Error("no slot")
						return
					}
					r.Release(Answered)
				}
			})
		})
	}
}

// longQueue returns a service with one instance, whose slots are taken, and a
// queue of n behind them.
func longQueue(b *testing.B, n, slots int) (s *Service, in, queue []*Reservation) {
	s = New(Options{MaxWaiting: n}, nil, hooks{})
	s.Add("x", "", "", "", slots)
	for range slots {
		in = append(in, mustReserve(b, s))
	}
	for range n {
		queue = append(queue, mustWait(b, s, false))
	}
	return s, in, queue
}

// One request ends, the oldest of the queue takes its slot, and the first one
// goes to the end of the queue.
func BenchmarkHandOver(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, in, queue := longQueue(b, n, 1)
			r, k := in[0], 0
			b.ReportAllocs()
			for b.Loop() {
				r.Release(Answered)
				next := queue[k]
				if err := <-next.Granted(); err != nil {
					b.Fatal(err)
				}
				queue[k] = r
				if ok, _ := s.Reserve(r, Ask{}); ok {
					b.Fatal("overtook the queue")
				}
				r, k = next, (k+1)%n
			}
		})
	}
}

// One from anywhere in the queue goes away and comes back.
func BenchmarkCancel(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _, queue := longQueue(b, n, 1)
			k := 0
			b.ReportAllocs()
			for b.Loop() {
				k = (k + 7919) % n
				if queue[k].Cancel() {
					b.Fatal("granted")
				}
				if ok, _ := s.Reserve(queue[k], Ask{}); ok {
					b.Fatal("overtook the queue")
				}
			}
		})
	}
}

// A queue of 10 000 goes away as one, one after the other.
func BenchmarkCancelAllOf10000(b *testing.B) {
	s, _, queue := longQueue(b, 10000, 1)
	for b.Loop() {
		for _, r := range queue {
			r.Cancel()
		}
		b.StopTimer()
		for _, r := range queue {
			if ok, err := s.Reserve(r, Ask{}); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		b.StartTimer()
	}
}

// How long the lock is held to choose from 1000 instances.
func BenchmarkCordonLeastLoaded(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Options{}, nil, hooks{})
			var all []*Instance
			for k := range 1000 {
				all = append(all, s.Add(fmt.Sprint(k), "", "", "", 10))
			}
			for range 5000 {
				mustReserve(b, s)
			}
			for b.Loop() {
				chosen := s.CordonLeastLoaded(n, all, time.Time{})
				b.StopTimer()
				for _, i := range chosen {
					i.Uncordon()
				}
				b.StartTimer()
			}
		})
	}
}

// With half of the slots taken the oldest request ends and a new one comes,
// so that the order of the instances really changes.
func BenchmarkReserveReleaseBusy(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(Options{}, nil, hooks{})
			var in []*Reservation
			for k := range n {
				s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			for range 5 * n {
				in = append(in, mustReserve(b, s))
			}
			k := 0
			b.ReportAllocs()
			for b.Loop() {
				r := in[k]
				r.Release(Answered)
				if ok, _ := s.Reserve(r, Ask{}); !ok {
					b.Fatal("no slot")
				}
				if k++; k == len(in) {
					k = 0
				}
			}
		})
	}
}
