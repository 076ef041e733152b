package registry_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

// many returns a registry with n services, each with a host.
func many(t testing.TB, n int) *registry.Registry {
	t.Helper()
	r := registry.New(registrytest.NewMemory().Open(), func(*registry.Record, *registry.Record) {})
	r.Use(registry.Rules{Templates: map[string]*registry.Template{"web": newTemplate(t, 1<<20)}, AllowTemplates: []string{"web"}, Configured: func(string) bool { return false }})
	for i := range n {
		name := fmt.Sprintf("s%05d", i)
		call := registry.Call{Owner: fmt.Sprintf("o%d", i%100), Now: time.Unix(1e9, 0)}
		if _, _, err := r.Put(context.Background(), call, name, []byte(web("x", name+".example.com"))); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestLookingUpAllocatesNothing(t *testing.T) {
	r := many(t, 1000)
	if n := testing.AllocsPerRun(100, func() {
		if r.Get("s00500") == nil || r.ByHost("s00500.example.com") == "" || r.Get("unknown") != nil || r.ByHost("unknown.example.com") != "" {
			t.Fatal("the services are not found")
		}
	}); n != 0 {
		t.Errorf("looking up four names makes %v allocations", n)
	}
}

func BenchmarkGet(b *testing.B) {
	r := many(b, 10000)
	b.ReportAllocs()
	for b.Loop() {
		if r.Get("s05000") == nil {
			b.Fatal("not found")
		}
	}
}

func BenchmarkByHost(b *testing.B) {
	r := many(b, 10000)
	b.ReportAllocs()
	for b.Loop() {
		if r.ByHost("s05000.example.com") == "" {
			b.Fatal("not found")
		}
	}
}

// BenchmarkPut changes one of 10 000 services, in a store in memory.
func BenchmarkPut(b *testing.B) {
	r := many(b, 10000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		call := registry.Call{Operator: true, Now: time.Unix(1e9+int64(i), 0), IfMatch: "*"}
		if _, _, err := r.Put(context.Background(), call, "s05000", []byte(web(fmt.Sprintf("x%d", i%2)))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVariant asks for a variant that is there.
func BenchmarkVariant(b *testing.B) {
	r := many(b, 10000)
	params := map[string]string{"SIZE": "large"}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.Variant("s05000", params); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory tells how much memory a service needs.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := many(b, 10000)
		// The store in memory has the text of each, too.
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10000, "B/service")
		runtime.KeepAlive(r)
	}
}
