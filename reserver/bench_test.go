package reserver

import (
	"fmt"
	"testing"
)

func BenchmarkReserveRelease(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, bal := range []struct {
			name string
			b    Balance
		}{{"least_loaded", LeastLoaded}, {"oldest", Oldest}, {"random", Random}} {
			b.Run(fmt.Sprintf("%s/%d", bal.name, n), func(b *testing.B) {
				s := New(Options{MaxWaiting: 10, Balance: bal.b}, nil, Hooks{})
				for k := range n {
					s.Add(fmt.Sprint(k), "", "", "", 10)
				}
				var r Reservation
				b.ReportAllocs()
				for b.Loop() {
					if ok, _ := s.Reserve(&r, false); !ok {
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
			s := New(Options{MaxWaiting: 10}, nil, Hooks{})
			for k := range n {
				s.Add(fmt.Sprint(k), "", "", "", 10)
			}
			b.ReportAllocs()
			b.SetParallelism(1)
			b.RunParallel(func(pb *testing.PB) {
				var r Reservation
				for pb.Next() {
					if ok, _ := s.Reserve(&r, false); !ok {
						b.Error("no slot")
						return
					}
					r.Release(Answered)
				}
			})
		})
	}
}
