package registry_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/registry"
)

// FuzzBodies puts, patches and rolls back with any bodies, and finds objects with any
// labels. Nothing panics. What is accepted is in canonical form, comes back from the
// store as it was, stands only where the template and the platform permit it, and keeps
// its secrets.
func FuzzBodies(f *testing.F) {
	const whole = `{"service":{"backend":{"type":"process","args":["x"],"env":{"KEY":"hush"}}},"hosts":["a.example.com"],"fallback":"off"}`
	for _, body := range []string{web("shop", "shop.example.com"), whole, `{"template":"web","params":{"name":"a","team":"blue","SIZE":"large"},"fallback":"90s"}`} {
		for _, patch := range []string{
			`{}`, `null`, `{"params":{"name":"b","team":null}}`, `{"hosts":["b.example.com","a.example.com"]}`, `{"service":{"backend":{"env":{"KEY":"***","A":null}}}}`,
			`{"template":null,"params":null,` + whole[1:], `{"service":{"backend":{"type":"open"}}}`, `{"fallback":null,"hosts":null}`,
		} {
			f.Add(body, patch, "instances", "1 2", `{"type":"kubernetes","resource":"deployment/web"}`)
		}
	}
	for key, value := range map[string]string{"hosts": "a.example.com, b", "concurrency": "unlimited", "idle-timeout": "off", "ready": "http /x", "scale": "queue", "name": "other", "command": "x"} {
		f.Add(web("shop"), `{"params":{"SIZE":"large"}}`, key, value, `{"type":"kubernetes","Type":"process"}`)
	}
	f.Fuzz(func(t *testing.T, body, patch, key, value, backend string) {
		w := newWorld(t)
		w.rules.Mask = maskEnv
		w.rules.AllowBackends = []string{"process", "open"}
		w.Use(w.rules)
		operator := registry.Call{Operator: true, Now: w.now}
		record, _, err := w.Put(t.Context(), operator, "shop", []byte(body))
		w.sayable(err)
		if err == nil {
			w.sound(record)
			operator.IfMatch = "*"
			if again, _, err := w.Put(t.Context(), operator, "shop", []byte(body)); err != nil || again != record {
				t.Fatalf("the same body again made %+v, error %v", again, err)
			}
			patched, err := w.Patch(t.Context(), operator, "shop", []byte(patch))
			w.sayable(err)
			if err == nil {
				w.sound(patched)
				// The same patch again changes nothing.
				twice, err := w.Patch(t.Context(), operator, "shop", []byte(patch))
				if err != nil || twice != patched {
					t.Fatalf("the patch %s twice: %s, then %s, error %v", patch, patched.Current().Definition.Service, twice.Current().Definition.Service, err)
				}
				back, err := w.Rollback(t.Context(), operator, "shop", record.Current().Number)
				if err != nil || !strings.HasSuffix(back.ETag(), record.ETag()[strings.Index(record.ETag(), "-"):]) {
					t.Fatalf("rolled back to %s it is %s, error %v", record.ETag(), back.ETag(), err)
				}
			}
		}
		owners, _, err := w.Put(t.Context(), w.owner("ann"), "mine", []byte(body))
		w.sayable(err)
		if err == nil && owners.Current().Definition.Service != nil {
			t.Fatalf("an owner made %s", owners.Current().Definition.Service)
		}
		_, _, err = w.Variant("shop", map[string]string{key: value})
		w.sayable(err)
		w.SetFound("k", "kubernetes", []registry.Found{{Object: "o", Name: "found", Labels: map[string]string{key: value}, Backend: json.RawMessage(backend), Since: w.now}})
		for _, record := range w.List() {
			if record.Origin == registry.Discovered {
				w.soundFound(record, backend)
			}
		}
		for _, r := range w.Rejected() {
			if r.Reason == "" || r.Source != "k" {
				t.Fatalf("rejected is %+v", r)
			}
		}
	})
}

// sayable checks that an error is one of the registry, with a text.
func (w *world) sayable(err error) {
	w.Helper()
	if err != nil && (registry.KindOf(err) == 0 || err.Error() == "" || registry.KindOf(err) == registry.StoreFailed) {
		w.Fatalf("the error is %v, of kind %d", err, registry.KindOf(err))
	}
}

// sound checks a record that was accepted.
func (w *world) sound(record *registry.Record) {
	w.Helper()
	d := record.Current().Definition
	text, err := json.Marshal(d)
	if err != nil {
		w.Fatal(err)
	}
	again, err := registry.ParseDefinition(text)
	if err != nil {
		w.Fatalf("%s cannot be read again: %v", text, err)
	}
	if same, err := json.Marshal(again); err != nil || string(same) != string(text) {
		w.Fatalf("the canonical form of %s is %s, error %v", text, same, err)
	}
	stored, err := registry.DecodeRecord(registry.EncodeRecord(record))
	if err != nil || stored.ETag() != record.ETag() || stored.State() != record.State() {
		w.Fatalf("%s came back from the store as %+v, error %v", text, stored, err)
	}
	service, err := w.Resolve(&d)
	if err != nil {
		w.Fatalf("%s was accepted, and cannot be resolved: %v", text, err)
	}
	if d.Template != "" {
		values := map[string]string{"team": "red", "SIZE": "small"}
		maps.Copy(values, d.Params)
		wantService(w.T, service, values)
		if len(values) != 3 {
			w.Fatalf("%s has other params", text)
		}
	}
	shown := w.Shown(record).Current().Definition
	if d.Service != nil {
		if want, err := maskEnv(d.Service); err != nil || compact(w.T, shown.Service) != compact(w.T, want) {
			w.Fatalf("%s is shown as %s", text, shown.Service)
		}
	}
}

func compact(t *testing.T, text json.RawMessage) string {
	t.Helper()
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	b, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// soundFound checks a discovered service: its backend is the object's.
func (w *world) soundFound(record *registry.Record, backend string) {
	w.Helper()
	var service struct{ Backend json.RawMessage }
	if err := json.Unmarshal(record.Current().Definition.Service, &service); err != nil {
		w.Fatal(err)
	}
	if compact(w.T, service.Backend) != compact(w.T, json.RawMessage(backend)) {
		w.Fatalf("the object has the backend %s, and its service %s", backend, service.Backend)
	}
}

// FuzzStored reads any record of a store.
func FuzzStored(f *testing.F) {
	for _, text := range []string{
		`{"version":1,"name":"web","owner":"ann","revisions":[{"number":1,"definition":{"template":"web","params":{"name":"a"}},"by":"ann","at":"2026-11-28T12:00:00Z"}],"changed":"2026-11-28T12:00:00Z"}`,
		`{"version":1,"name":"web","revisions":[{"number":1,"definition":{"template":"web"}},{"number":3,"definition":{"service":{"backend":{"type":"x"}}},"failed":{"reason":"r"}}],"deleted":"2026-11-28T12:00:00Z","deleted_by":"x","used":"2026-11-28T12:00:00Z"}`,
		`{"version":1,"name":"web","revisions":[{"number":2,"definition":{}},{"number":1}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		record, err := registry.DecodeRecord(data)
		if err != nil {
			return
		}
		again, err := registry.DecodeRecord(registry.EncodeRecord(record))
		if err != nil || again.ETag() != record.ETag() || again.State() != record.State() || again.Newer(record) || record.Newer(again) {
			t.Fatalf("%s came back as %+v, error %v", data, again, err)
		}
		if registry.CheckName(record.Name) != nil || record.Current() == nil || record.InForce() == nil {
			t.Fatalf("%s is the record %+v", data, record)
		}
		if p := filepath.Join("/store", record.Name); filepath.Dir(p) != "/store" || strings.ContainsRune(p, os.PathListSeparator) {
			t.Fatalf("the name leads to %s", p)
		}
	})
}
