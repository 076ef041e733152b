//go:build unix

package process

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestTheCaddyfileSaysWhatTheJSONSays(t *testing.T) {
	tests := []struct{ caddyfile, json string }{
		{`process /bin/true`, `{"command":"/bin/true"}`},
		{`process ./server --listen {usher.address} "two words"`, `{"command":"./server","args":["--listen","{usher.address}","two words"]}`},
		{
			"process server {\n dir /tmp\n env A 1\n env B \"{usher.instance} x\"\n user nobody\n stop_signal QUIT\n listen unix\n output discard\n}",
			`{"command":"server","dir":"/tmp","env":{"A":"1","B":"{usher.instance} x"},"user":"nobody","stop_signal":"QUIT","listen":"unix","output":"discard"}`,
		},
	}
	for _, test := range tests {
		var b Backend
		if err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.caddyfile)); err != nil {
			t.Errorf("%s: %v", test.caddyfile, err)
			continue
		}
		if got, _ := json.Marshal(&b); string(got) != test.json {
			t.Errorf("%s:\n got %s\nwant %s", test.caddyfile, got, test.json)
		}
	}
}

func TestTheCaddyfileRefusesWithTheLine(t *testing.T) {
	for text, words := range map[string]string{
		`process`:                               "needs a command",
		"process x {\n port 1\n}":               "unrecognized option 'port'",
		"process x {\n dir\n}":                  "exactly one value",
		"process x {\n dir a b\n}":              "exactly one value",
		"process x {\n dir a\n dir b\n}":        "dir is given twice",
		"process x {\n env A\n}":                "name and a value",
		"process x {\n env A 1\n env A 2\n}":    "env A is given twice",
		"process x {\n env USHER_SERVICE me\n}": "set by Usher itself",
		"process x {\n listen udp\n}":           "tcp, unix, fd",
		"process x {\n output file\n}":          "log, discard",
		"process x {\n stop_signal NICE\n}":     "no signal",
		"process x {\n stop_signal STOP\n}":     "does not ask a process to end",
		"process x {http.request.port}":         "use {usher.port}",
		"process x {usher.socket}":              "listen unix only",
	} {
		var b Backend
		err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Testfile:") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestBadConfigurationsAreRefusedAtLoad(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for words, b := range map[string]*Backend{
		"a command is required":         {},
		"/no/such does not exist":       {Command: "/no/such"},
		"PATH":                          {Command: "no-such-command-anywhere"},
		"chmod +x":                      {Command: plain},
		"is a directory":                {Command: dir},
		dir + "/sub/x does not exist":   {Command: "sub/x", Dir: dir},
		"dir /no/such does not exist":   {Command: "/bin/true", Dir: "/no/such"},
		"is not a directory":            {Command: "/bin/true", Dir: plain},
		"user nobody-here":              {Command: "/bin/true", User: "nobody-here"},
		"user 4294967294":               {Command: "/bin/true", User: "4294967294"},
		`listen "udp"`:                  {Command: "/bin/true", Listen: "udp"},
		`output "x"`:                    {Command: "/bin/true", Output: "x"},
		`stop_signal "x"`:               {Command: "/bin/true", StopSignal: "x"},
		"LISTEN_FDS is set by Usher":    {Command: "/bin/true", Env: map[string]string{"LISTEN_FDS": "1"}},
		"no name of a variable":         {Command: "/bin/true", Env: map[string]string{"A=B": "1"}},
		"argument 2 of /bin/true":       {Command: "/bin/true", Args: []string{"a", "{http.request.host}"}},
		"env X: placeholder {vars.a}":   {Command: "/bin/true", Env: map[string]string{"X": "{vars.a}"}},
		"dir: placeholder {usher.what}": {Command: "/bin/true", Dir: "/{usher.what}"},
	} {
		err := b.Provision(caddy.Context{})
		if err == nil {
			err = checked(b)
		}
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v, want %q", b, err, words)
		}
	}
}

func TestCommandsAreFoundAsTheInstanceWouldFindThem(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tool"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*Backend{
		{Command: "sh"},
		{Command: "./tool", Dir: dir},
		{Command: "tool", Env: map[string]string{"PATH": dir}},
		// Only the start can know.
		{Command: "/no/{usher.instance}"},
		{Command: "./tool", Dir: "/no/{usher.instance}"},
		{Command: "tool", Env: map[string]string{"PATH": "/no/{usher.instance}"}},
	} {
		provision(t, b)
	}
}

func TestPlaceholders(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("{usher.port}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_PLACEHOLDER", "{usher.service}")
	values := map[string]string{keyPort: "21000", keyAddress: "127.0.0.1:21000", keyInstance: "i", keyService: "web"}

	for text, want := range map[string]string{
		"":                    "",
		"plain":               "plain",
		"--port={usher.port}": "--port=21000",
		"{usher.address}/{usher.instance}/{usher.service}": "127.0.0.1:21000/i/web",
		// What placeholders stand for is not read again.
		"{env.TEST_PLACEHOLDER}":    "{usher.service}",
		"a{file." + secret + "}b":   "a{usher.port}b",
		"{env.TEST_NOT_SET_AT_ALL}": "",
		// Braces that are something else.
		`{"a":1}`:                      `{"a":1}`,
		`{"port":{usher.port}}`:        `{"port":21000}`,
		`{}`:                           `{}`,
		`{`:                            `{`,
		`}{`:                           `}{`,
		`{print $1}`:                   `{print $1}`,
		`{print}`:                      `{print}`,
		`${HOME} ${port} ${a.b}`:       `${HOME} ${port} ${a.b}`,
		`{{.Names}} {{config.host}}`:   `{{.Names}} {{config.host}}`,
		`a\{2,3\}`:                     `a\{2,3\}`,
		`{a,b}`:                        `{a,b}`,
		`\{usher.port}`:                `{usher.port}`,
		`\{http.request.port}`:         `{http.request.port}`,
		`x {"a":{"b":"{usher.port}"}}`: `x {"a":{"b":"21000"}}`,
	} {
		tmpl, err := newResolver(listenTCP).parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := tmpl.fill(values); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}

	for text, words := range map[string]string{
		"{http.request.port}":          "use {usher.port}",
		"{port}":                       "use {usher.port}",
		"${http.request.port}":         "use {usher.port}",
		"{hostport}":                   "use {usher.address}",
		"{http.request.hostport}":      "use {usher.address}",
		"{http.request.uuid}":          "use {usher.instance}",
		"{http.request.header.X-Evil}": "no value when a process is started",
		"{path}":                       "no value when a process is started",
		"{system.hostname}":            "no value when a process is started",
		"{usher.prot}":                 "there are {usher.port}, {usher.address}",
		"{usher.socket}":               "use {usher.port} or {usher.address}",
		"{file./no/such/file}":         "cannot be read",
		"{http.vars.x} \\{usher.port}": "\\{http.vars.x}",
	} {
		if _, err := newResolver(listenTCP).parse(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
	for text, words := range map[string]string{
		"{usher.port}":    "use {usher.socket}",
		"{usher.address}": "use {usher.socket}",
		"{port}":          "use {usher.socket}",
	} {
		if _, err := newResolver(listenUnix).parse(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("listen unix: %q: %v, want %q", text, err, words)
		}
	}
	if _, err := newResolver(listenFD).parse("{usher.port}{usher.address}"); err != nil {
		t.Errorf("a passed socket has an address: %v", err)
	}
	if _, err := newResolver(listenFD).parse("{usher.socket}"); err == nil {
		t.Error("a passed socket has no name of a file")
	}
}

func TestFingerprintsTellWhatShapesAnInstance(t *testing.T) {
	t.Setenv("TEST_SECRET", "one")
	fingerprint := func(b Backend) string {
		t.Helper()
		provision(t, &b)
		return b.Fingerprint()
	}
	base := Backend{Command: "/bin/true", Args: []string{"a"}, Env: map[string]string{"A": "{env.TEST_SECRET}", "B": "2"}}
	first := fingerprint(base)
	if again := fingerprint(Backend{
		Command: "/bin/true", Args: []string{"a"}, Env: map[string]string{"B": "2", "A": "one"},
		Listen: "tcp", Output: "log", StopSignal: "SIGTERM",
	}); again != first {
		t.Error("equal after defaults and placeholders, and yet another fingerprint")
	}
	for what, change := range map[string]func(*Backend){
		"command": func(b *Backend) { b.Command = "/bin/false" },
		"args":    func(b *Backend) { b.Args = []string{"{usher.port}"} },
		"literal": func(b *Backend) { b.Args = []string{"\\{usher.port}"} },
		"split":   func(b *Backend) { b.Args = []string{"a", ""} },
		"dir":     func(b *Backend) { b.Dir = "/tmp" },
		"env":     func(b *Backend) { b.Env = map[string]string{"A": "1"} },
		"signal":  func(b *Backend) { b.StopSignal = "INT" },
		"listen":  func(b *Backend) { b.Listen = "unix" },
		"output":  func(b *Backend) { b.Output = "discard" },
		"secret":  func(*Backend) { t.Setenv("TEST_SECRET", "two") },
	} {
		b := base
		change(&b)
		if fingerprint(b) == first {
			t.Errorf("%s changed, and the fingerprint did not", what)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Setenv("TEST_SECRET", "hunter2")
	b := &Backend{Command: "/bin/true", Args: []string{"{env.TEST_SECRET}"}, Env: map[string]string{"A": "hunter2", "B": "{env.TEST_SECRET}"}}
	provision(t, b)
	shown, err := json.Marshal(b.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"command":"/bin/true","args":["{env.TEST_SECRET}"],"env":{"A":"***","B":"***"}}`; string(shown) != want {
		t.Fatalf("got %s, want %s", shown, want)
	}
	if b.Env["A"] != "hunter2" || strings.Contains(b.Fingerprint(), "hunter2") {
		t.Fatal("the configuration was changed, or the fingerprint shows a secret")
	}
}

func TestTheModuleIsKnownToCaddy(t *testing.T) {
	info, err := caddy.GetModule("usher.backends.process")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := info.New().(*Backend); !ok {
		t.Fatalf("it makes a %T", info.New())
	}
}
