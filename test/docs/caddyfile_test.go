package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
	_ "github.com/caddy-usher/usher/test/docs/fleet"
	_ "github.com/caddy-usher/usher/test/docs/spare"
)

// Each Caddyfile is adapted and provisioned, as by `caddy validate`. What it
// needs of the machine is there: its files from the page, a stand-in for
// everything else.
func TestCaddyfiles(t *testing.T) {
	all, count := blocks(t), 0
	for _, b := range all {
		var text string
		switch {
		case b.lang == "json":
			text = `{"apps":{"http":{"servers":{"docs":{"listen":["127.0.0.1:8080"],"routes":[` + b.text + `]}}}}}`
		case b.lang != "caddyfile":
			continue
		case b.has("directive"):
			text = "http://localhost:8080 {\n" + b.text + "}\n"
		default:
			text = b.text
		}
		count++
		t.Run(strings.ReplaceAll(b.String(), "/", "-"), func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, b, all)
			text = below(dir, text)
			standIns(t, dir, text)
			t.Chdir(dir)
			t.Setenv("PATH", os.Getenv("PATH")+":"+filepath.Join(dir, "bin"))
			t.Setenv("KUBECONFIG", kubeconfig(t, dir))
			t.Setenv("HOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
			if err := validate(text, b.lang == "caddyfile"); err != nil {
				t.Errorf("%s: %v", b, err)
			}
		})
	}
	if count < 25 {
		t.Errorf("only %d configurations", count)
	}
}

// A mistake in a page is found.
func TestMistakesAreFound(t *testing.T) {
	for _, text := range []string{
		"http://localhost:8080 {\n\tusher app {\n\t\tbackend process sh\n\t\tconcurency 2\n\t}\n}\n",
		"http://localhost:8080 {\n\tusher app {\n\t\tbackend process /no/such/program\n\t}\n}\n",
	} {
		if err := validate(text, true); err == nil {
			t.Errorf("no error:\n%s", text)
		}
	}
}

func validate(text string, caddyfile bool) error {
	doc := []byte(text)
	if caddyfile {
		var err error
		if doc, err = adapt(text); err != nil {
			return err
		}
	}
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(doc, &cfg); err != nil {
		return err
	}
	return caddy.Validate(&cfg)
}

func adapt(text string) ([]byte, error) {
	doc, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	for _, w := range warnings {
		// The style of a snippet that a test has put into a site is its own.
		if err == nil && !strings.Contains(w.Message, "not formatted") {
			err = fmt.Errorf("warning: %s", w)
		}
	}
	return doc, err
}

// below moves the paths that pages use into dir.
func below(dir, text string) string { return strings.ReplaceAll(text, "/srv/", dir+"/srv/") }

// writeFiles writes the files that the page shows in the section of b, above it.
func writeFiles(t *testing.T, dir string, b block, all []block) {
	t.Helper()
	for _, f := range all {
		if f.page != b.page || f.section != b.section || f.line > b.line || f.file() == "" || f.lang == "go" {
			continue
		}
		name := below(dir, f.file())
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		write(t, name, below(dir, f.text), 0o644)
	}
}

func write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

var (
	commandPattern = regexp.MustCompile(`backend process (\S+)|"command": "([^"]+)"`)
	pathPattern    = regexp.MustCompile(`\b(dir|env_file) (\S+)`)
)

// standIns makes what a configuration names and this machine lacks.
func standIns(t *testing.T, dir, text string) {
	t.Helper()
	for _, m := range commandPattern.FindAllStringSubmatch(text, -1) {
		name := m[1] + m[2]
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if !strings.Contains(name, "/") {
			name = "bin/" + name
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		write(t, name, "#!/bin/sh\nexit 1\n", 0o755)
	}
	for _, m := range pathPattern.FindAllStringSubmatch(text, -1) {
		if m[1] == "env_file" {
			write(t, m[2], "SECRET=x\n", 0o600)
		} else if err := os.MkdirAll(m[2], 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// kubeconfig writes a way to a cluster, which no test takes.
func kubeconfig(t *testing.T, dir string) string {
	t.Helper()
	doc, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "docs",
		"clusters": []any{map[string]any{"name": "docs", "cluster": map[string]any{"server": "http://127.0.0.1:1"}}},
		"contexts": []any{map[string]any{"name": "docs", "context": map[string]any{"cluster": "docs", "user": "docs"}}},
		"users":    []any{map[string]any{"name": "docs", "user": map[string]any{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "kubeconfig")
	write(t, name, string(doc), 0o600)
	return name
}
