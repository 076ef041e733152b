//go:build unix

package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// What this machine lacks is no mistake of the configuration: Provision accepts
// it, Check names it, and it is looked for again.
func TestWhatTheMachineLacksIsNamedByCheckAndFoundLater(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]func(path string) (*Backend, string){
		"file": func(path string) (*Backend, string) {
			return &Backend{Command: "/bin/sh", Args: []string{"-c", "{file." + path + "}"}}, "{file."
		},
		"file of a variable": func(path string) (*Backend, string) {
			return &Backend{Command: "/bin/sh", Env: map[string]string{"A": "{file." + path + "}"}}, "{file."
		},
		"env_file": func(path string) (*Backend, string) {
			return &Backend{Command: "/bin/sh", EnvFile: []string{path}}, "env_file"
		},
		"command": func(path string) (*Backend, string) {
			return &Backend{Command: path}, "does not exist"
		},
	} {
		path := filepath.Join(t.TempDir(), "late")
		b, words := of(path)
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Errorf("%s: refused: %v", name, err)
			continue
		}
		before := b.Fingerprint()
		if before != b.Fingerprint() {
			t.Errorf("%s: the fingerprint changes by itself", name)
		}
		f := b.Check()
		if f == nil || !f.ForGood || !strings.Contains(f.Error(), words) || !strings.Contains(f.Error(), path) {
			t.Errorf("%s: missing is %v", name, f)
		}
		if name != "command" {
			if s, err := b.Open(scaler.Env{Service: "web"}); err == nil {
				t.Errorf("%s: opened %v", name, s)
			}
		}
		if err := os.WriteFile(path, []byte("A=1"), 0o755); err != nil {
			t.Fatal(err)
		}
		if f := b.Check(); f != nil {
			t.Errorf("%s: still missing: %v", name, f)
		}
		same, _ := of(path)
		provision(t, same)
		if b.Fingerprint() != same.Fingerprint() {
			t.Errorf("%s: the next load would take it for another revision", name)
		}
	}
}

// An instance must never run as Caddy's own user because its user is missing.
func TestABackendWithoutItsUserIsNotOpened(t *testing.T) {
	t.Parallel()
	b := &Backend{Command: "/bin/true", User: "no-such-user-here"}
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if f := b.Check(); f == nil || f.Reason != scaler.ReasonNotFound || f.Short != "the user does not exist" {
		t.Errorf("missing is %v", f)
	}
	if s, err := b.Open(scaler.Env{Service: "web"}); err == nil {
		t.Errorf("opened %v", s)
	}
}

func TestARestartReadsFilesAndVariablesAnew(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	t.Setenv("TEST_REFRESH", "1")
	b := shell(`echo "$A $B"; exec sleep 100`)
	b.Env = map[string]string{"A": "{file." + secret + "}", "B": "{env.TEST_REFRESH}"}
	old := open(t, b)
	old.one()
	eventually(t, "the first secret", func() bool { return len(old.messages("stdout")) == 1 })
	before := b.Fingerprint()

	write("two")
	t.Setenv("TEST_REFRESH", "2")
	if err := b.Refresh(); err != nil {
		t.Fatal(err)
	}
	if b.Fingerprint() == before {
		t.Error("the fingerprint is the one of the old secret")
	}
	// What runs already stays what it is.
	old.scale(2)
	eventually(t, "the second instance", func() bool { return len(old.messages("stdout")) == 2 })
	if got := old.messages("stdout"); got[0] != "one 1" || got[1] != "one 1" {
		t.Errorf("the old revision started %q", got)
	}
	env := scaler.Env{Service: "web", Revision: "r2", Logger: old.runner.env.Logger, Host: old.runner.env.Host, Report: func(scaler.Report) {}}
	s, err := b.Open(env)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context(), 0)
	if err := s.Scale(t.Context(), scaler.Order{Instances: 1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new secret", func() bool { return len(old.messages("stdout")) == 3 })
	if got := old.messages("stdout")[2]; got != "two 2" {
		t.Errorf("the new revision started %q", got)
	}

	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	after := b.Fingerprint()
	if err := b.Refresh(); err == nil || !strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
	if b.Fingerprint() != after {
		t.Error("what failed has changed something")
	}
}
