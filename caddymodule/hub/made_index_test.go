package hub

import (
	"fmt"
	"sync"
	"testing"
)

// indexOf returns an index of n services, and their names.
func indexOf(n int) (*madeIndex, []string) {
	x, names := new(madeIndex), make([]string, n)
	for k := range names {
		names[k] = fmt.Sprintf("service-%d", k)
		x.set(names[k], new(Made))
	}
	return x, names
}

func TestTheIndexFindsWhatWasSetLast(t *testing.T) {
	x, names := indexOf(1000)
	other := new(Made)
	x.set(names[1], other)
	x.set(names[2], nil)
	if x.find(names[0]) == nil || x.find(names[1]) != other || x.find(names[2]) != nil || x.find("unknown") != nil {
		t.Error("not what was set")
	}
}

// A request that finds its service, or does not, leaves nothing behind.
func TestLookingUpAServiceAllocatesNothing(t *testing.T) {
	x, names := indexOf(10_000)
	unknown := string([]byte("no-such-service"))
	if n := testing.AllocsPerRun(1000, func() {
		if x.find(names[42]) == nil || x.find(unknown) != nil {
			t.Error("not found, or found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTheIndexMayBeReadWhileItChanges(t *testing.T) {
	x, names := indexOf(100)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for k := range 10_000 {
				x.find(names[k%len(names)])
			}
		})
	}
	for k := range 10_000 {
		x.set(names[k%len(names)], new(Made))
	}
	all.Wait()
}

func BenchmarkLookup(b *testing.B) {
	x, names := indexOf(10_000)
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		k := 0
		for b.Loop() {
			x.find(names[k%len(names)])
			k++
		}
	})
	b.Run("all cores", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for k := 0; pb.Next(); k++ {
				x.find(names[k%len(names)])
			}
		})
	})
}
