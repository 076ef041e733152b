//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"golang.org/x/sys/unix"
)

// envFile writes a file of variables, and returns its path.
func envFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "service.env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLinesOfAnEnvFileAreReadAsDockerAndSystemdReadThem(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]map[string]string{
		"":                                 {},
		"\n\n# A=1\n; B=2\n  # C=3\n":      {},
		"A=1":                              {"A": "1"},
		"A=1\r\nB=2\r\n":                   {"A": "1", "B": "2"},
		"\ufeffA=1":                        {"A": "1"},
		"export A=1\nexport\tB=2\n":        {"A": "1", "B": "2"},
		"exported=1":                       {"exported": "1"},
		" A = 1 \n\tB=\n":                  {"A": "1", "B": ""},
		"A=1\nA=2\n":                       {"A": "2"},
		"URL=postgres://u:p@h/d?a=b&c=d#f": {"URL": "postgres://u:p@h/d?a=b&c=d#f"},
		"P=pass # word":                    {"P": "pass # word"},
		"P=$HOME ${X} {usher.port} {$Y}":   {"P": "$HOME ${X} {usher.port} {$Y}"},
		"A=it's \"here\"":                  {"A": "it's \"here\""},
		`A='$x \n "y" # z' # a comment`:    {"A": `$x \n "y" # z`},
		`A="a\nb\tc\"d\"\\e\$f\q"`:         {"A": "a\nb\tc\"d\"\\e$f\\q"},
		"A=\"one\\\ntwo\"":                 {"A": "onetwo"},
		"A=\"-----BEGIN\nx=y\n#z\n-----END\"\nB='1\n2'\nC=3": {
			"A": "-----BEGIN\nx=y\n#z\n-----END", "B": "1\n2", "C": "3",
		},
		`J={"a":"b=c"}`:    {"J": `{"a":"b=c"}`},
		`A="" ` + "\nB=''": {"A": "", "B": ""},
		"a.b-c=1":          {"a.b-c": "1"},
	} {
		got, err := parseEnvFile(text)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestAMistakeInAnEnvFileIsToldByItsLineAndNotByItsSecret(t *testing.T) {
	t.Parallel()
	for text, words := range map[string]string{
		"A=1\nhunter2\n":                  "line 2 has no '='",
		"=hunter2":                        "line 1: what stands before the '='",
		"A B=hunter2":                     "line 1: what stands before the '='",
		"A=\"hunter2\nB=1\n":              "line 1: a quoted value is not closed",
		"# x\n\nA='x\ny'\nB='hunter2' x=": "line 5: there is text after the closing quote",
		"USHER_SERVICE=hunter2":           "line 1: env USHER_SERVICE is set by Usher itself",
		"LISTEN_FDS=1":                    "LISTEN_FDS is set by Usher",
		"A=hunter2\x00":                   "NUL byte",
	} {
		path := envFile(t, text)
		err := loaded(&Backend{Command: "/bin/true", EnvFile: []string{path}})
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want %q and the path", text, err, words)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows a value: %v", err)
		}
	}
}

func TestAnEnvFileThatCannotBeReadFailsTheLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, []byte(strings.Repeat("A=1\n", maxEnvFile/4+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{
		filepath.Join(dir, "none"): "none cannot be read: no such file or directory; create it",
		dir:                        "is not a regular file",
		pipe:                       "is not a regular file",
		large:                      "larger than 1 MiB",
		"{usher.instance}.env":     "{usher.*} has no place in its name",
		"{http.request.host}":      "belongs to a request",
		"{env.TEST_NOT_SET_EVER}":  "is empty",
	} {
		err := loaded(&Backend{Command: "/bin/true", EnvFile: []string{path}})
		if err == nil || !strings.Contains(err.Error(), "env_file") || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", path, err, words)
		}
	}
}

func TestAChangedEnvFileIsANewRevision(t *testing.T) {
	t.Parallel()
	path := envFile(t, "A=1\n")
	fingerprint := func(b *Backend) string {
		t.Helper()
		provision(t, b)
		return b.Fingerprint()
	}
	backend := func() *Backend { return &Backend{Command: "/bin/true", EnvFile: []string{path}} }
	first := fingerprint(backend())
	if again := fingerprint(backend()); again != first {
		t.Error("the same file makes another revision")
	}
	if inline := fingerprint(&Backend{Command: "/bin/true", Env: map[string]string{"A": "1"}}); inline != first {
		t.Error("the same variable is another revision if it stands in a file")
	}
	if err := os.WriteFile(path, []byte("# a comment\nA=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := fingerprint(backend()); again != first {
		t.Error("a comment makes another revision")
	}
	if err := os.WriteFile(path, []byte("A=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := fingerprint(backend()); again == first {
		t.Error("a changed value makes no new revision")
	}
}

func TestValuesOfAnEnvFileAreNotShown(t *testing.T) {
	t.Parallel()
	path := envFile(t, "A=hunter2\n")
	b := &Backend{Command: "/bin/true", EnvFile: []string{path}}
	provision(t, b)
	shown, err := json.Marshal(b.Redacted())
	if err != nil || string(shown) != fmt.Sprintf(`{"command":"/bin/true","env_file":[%q]}`, path) {
		t.Errorf("%s, %v", shown, err)
	}
}

func TestAnInstanceGetsTheVariablesOfItsFilesAndEnvGoesBefore(t *testing.T) {
	first := envFile(t, "FROM_FILE=\"two\\twords\"\nBOTH=first\nSHADOWED=file\nEMPTY=\nLITERAL={usher.port}\nPATH=/opt/tool\n")
	second := envFile(t, "BOTH=second\n")
	t.Setenv("TEST_ENV_FILE", second)
	b := self(t, "environment")
	b.EnvFile = []string{first, "{env.TEST_ENV_FILE}"}
	b.Env = map[string]string{"SHADOWED": "env"}
	bn := open(t, b)
	bn.scale(1)
	want := []string{
		"FROM_FILE=two\twords", "BOTH=second", "SHADOWED=env", "EMPTY=", "LITERAL={usher.port}", "PATH=/opt/tool", "USHER_SERVICE=web",
	}
	eventually(t, "the variables", func() bool {
		said := "\n" + strings.ReplaceAll(strings.Join(bn.messages("stdout"), "\n"), `\t`, "\t") + "\n"
		for _, line := range want {
			if !strings.Contains(said, "\n"+line+"\n") {
				return false
			}
		}
		return true
	})
}

func TestTheCaddyfileNamesEnvFiles(t *testing.T) {
	t.Parallel()
	var b Backend
	text := "process x {\n env_file a.env /etc/b.env\n env_file {env.C}\n}"
	if err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil || strings.Join(b.EnvFile, " ") != "a.env /etc/b.env {env.C}" {
		t.Errorf("%q, %v", b.EnvFile, err)
	}
	for text, words := range map[string]string{
		"process x {\n env_file\n}":                         "takes the path of a file",
		"process x {\n env_file \"\"\n}":                    "takes the path of a file",
		"process x {\n env_file {http.request.uuid}.env\n}": "belongs to a request",
	} {
		var b Backend
		if err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
}
