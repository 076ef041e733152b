package registrystore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
)

// tenThousand makes a storage with 10 000 records.
func tenThousand(b *testing.B) string {
	b.Helper()
	place := b.TempDir()
	if err := os.MkdirAll(filepath.Join(place, servicesKey), 0o700); err != nil {
		b.Fatal(err)
	}
	for i := range 10000 {
		name := fmt.Sprintf("s%05d", i)
		record := fmt.Sprintf(`{"version":1,"name":"%s","owner":"ann","revisions":[{"number":1,"definition":{"template":"web","params":{"name":"%s","team":"red"},"hosts":["%s.example.com"]},"by":"ann","at":"2026-11-28T12:00:00Z"}],"changed":"2026-11-28T12:00:00Z"}`, name, name, name)
		if err := os.WriteFile(filepath.Join(place, servicesKey, name+suffix), []byte(record), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return place
}

func newRegistry(b *testing.B, place string) *registry.Registry {
	b.Helper()
	r := registry.New(New(in(files(place))), func(*registry.Record, *registry.Record) {})
	r.Use(registry.Rules{AllowBackends: []string{"test"}})
	if err := r.Load(context.Background()); err != nil {
		b.Fatal(err)
	}
	return r
}

// BenchmarkLoad reads 10 000 records.
func BenchmarkLoad(b *testing.B) {
	place := tenThousand(b)
	for b.Loop() {
		if n := len(newRegistry(b, place).List()); n != 10000 {
			b.Fatalf("%d services are loaded", n)
		}
	}
}

// BenchmarkPut changes one of 10 000 services.
func BenchmarkPut(b *testing.B) {
	r := newRegistry(b, tenThousand(b))
	i := 0
	for b.Loop() {
		i++
		call := registry.Call{Operator: true, Now: time.Now(), IfMatch: "*"}
		if _, _, err := r.Put(context.Background(), call, "s05000", fmt.Appendf(nil, `{"service":{"backend":{"type":"test","value":%d}}}`, i)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRefresh looks whether anything has changed.
func BenchmarkRefresh(b *testing.B) {
	r := newRegistry(b, tenThousand(b))
	for b.Loop() {
		if err := r.Refresh(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
