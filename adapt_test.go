package usher_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each file has a Caddyfile with real backends, and what becomes of it: JSON,
// or the text of the error.
func TestAdaptWithBackends(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/adapt/*.caddytest")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddytest"), func(t *testing.T) {
			t.Parallel()
			const separator = "----------\n"
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(b), separator)
			var got bytes.Buffer
			if b, err := adapt(in); err != nil {
				got.WriteString(err.Error())
			} else if err := json.Indent(&got, b, "", "\t"); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			if *update {
				if err := os.WriteFile(file, []byte(in+separator+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != want {
				t.Errorf("want\n%s\ngot\n%s", want, got.String())
			}
		})
	}
}
