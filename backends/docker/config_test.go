package docker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/scaler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func provision(t *testing.T, b *Backend) error {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	return b.Provision(ctx)
}

func provisioned(t *testing.T, b *Backend) *Backend {
	t.Helper()
	if err := provision(t, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for want, b := range map[string]*Backend{
		"say which containers":                     {},
		"give one of":                              {Container: "a", Image: "b"},
		"as <project>/<service>":                   {Compose: "shop"},
		"label needs a key":                        {Label: "=x"},
		"give it as unix://":                       {Container: "a", Host: "http://engine"},
		"has no port":                              {Container: "a", Host: "tcp://engine"},
		"credentials do not belong":                {Container: "a", Host: "tcp://u:p@engine:2376"},
		"is a socket of this machine":              {Container: "a", CAFile: "/ca.pem"},
		"belong together":                          {Container: "a", Host: "tcp://engine:2376", CertFile: "/c.pem"},
		"ports are from 1":                         {Container: "a", Port: 70000},
		"address 'near' is unknown":                {Container: "a", Address: "near"},
		"idle 'freeze' is unknown":                 {Container: "a", Idle: "freeze"},
		"pause_timeout has no effect":              {Container: "a", PauseTimeout: caddy.Duration(time.Hour)},
		"pause_timeout -1s":                        {Container: "a", Idle: "pause", PauseTimeout: caddy.Duration(-time.Second)},
		"copies is for containers that exist":      {Image: "a", Copies: true},
		"memory is for containers that Usher":      {Container: "a", Memory: "64m"},
		"give it as 256m":                          {Image: "a", Memory: "lots"},
		"at least 6m":                              {Image: "a", Memory: "1m"},
		"cpus -1":                                  {Image: "a", CPUs: -1},
		"pull 'daily' is unknown":                  {Image: "a", Pull: "daily"},
		"is no name of a variable":                 {Image: "a", Env: map[string]string{"A=B": "c"}},
		"are Usher's own":                          {Image: "a", Labels: map[string]string{"usher.caddy": "x"}},
		"registry_auth needs a user":               {Image: "a", RegistryAuth: &RegistryAuth{Password: "x"}},
		"container: evaluated placeholder {env.NO": {Container: "{env.NO_SUCH_VARIABLE}"},
	} {
		if err := provision(t, b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", b, err, want)
		}
	}
}

func TestPlaceholdersAreResolved(t *testing.T) {
	t.Setenv("DOCKER_TEST_NAME", "web")
	b := provisioned(t, &Backend{Container: "{env.DOCKER_TEST_NAME}"})
	if b.plan.name != "web" {
		t.Errorf("the container is %q", b.plan.name)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	b := provisioned(t, &Backend{Image: "a", Env: map[string]string{"TOKEN": "hunter2"}, RegistryAuth: &RegistryAuth{User: "u", Password: "hunter3"}})
	text, err := json.Marshal(b.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter") || !strings.Contains(string(text), `"TOKEN":"***"`) || !strings.Contains(string(text), `"password":"***"`) {
		t.Errorf("shown as %s", text)
	}
}

// How idle containers rest, and how a registry is asked, shapes no instance;
// everything else does.
func TestFingerprint(t *testing.T) {
	base := func() *Backend { return &Backend{Image: "a", Memory: "64m"} }
	mine := provisioned(t, base()).Fingerprint()
	for what, change := range map[string]func(*Backend){
		"idle":          func(b *Backend) { b.Idle = idlePause },
		"pause_timeout": func(b *Backend) { b.Idle, b.PauseTimeout = idlePause, caddy.Duration(time.Hour) },
		"pull":          func(b *Backend) { b.Pull = pullNever },
		"registry_auth": func(b *Backend) { b.RegistryAuth = &RegistryAuth{User: "u", Password: "p"} },
		"default host":  func(b *Backend) { b.Host = defaultHost() },
	} {
		b := base()
		change(b)
		if provisioned(t, b).Fingerprint() != mine {
			t.Errorf("%s changes the fingerprint", what)
		}
	}
	for what, change := range map[string]func(*Backend){
		"image":   func(b *Backend) { b.Image = "b" },
		"command": func(b *Backend) { b.Command = []string{"x"} },
		"env":     func(b *Backend) { b.Env = map[string]string{"A": "b"} },
		"memory":  func(b *Backend) { b.Memory = "65m" },
		"port":    func(b *Backend) { b.Port = 80 },
		"host":    func(b *Backend) { b.Host = "tcp://other:2375" },
		"label":   func(b *Backend) { b.Labels = map[string]string{"a": "b"} },
		"address": func(b *Backend) { b.Address = addressPublished },
	} {
		b := base()
		change(b)
		if provisioned(t, b).Fingerprint() == mine {
			t.Errorf("%s does not change the fingerprint", what)
		}
	}
}

// Certificates belong to the host that they were given with.
func TestSharedOptions(t *testing.T) {
	shared := &Backend{Host: "tcp://shared:2376", CAFile: "/ca.pem", CertFile: "/cert.pem", KeyFile: "/key.pem"}
	b := &Backend{Container: "a"}
	b.MergeDefaults(shared)
	if b.Host != shared.Host || b.CAFile != shared.CAFile || b.KeyFile != shared.KeyFile {
		t.Errorf("of the shared options came %+v", b)
	}
	b = &Backend{Container: "a", Host: "unix:///other.sock"}
	b.MergeDefaults(shared)
	if b.Host != "unix:///other.sock" || b.CAFile != "" || b.CertFile != "" {
		t.Errorf("a service with a host of its own got %+v", b)
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	there := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := provisioned(t, &Backend{Container: "a", Host: "tcp://engine:2376", CAFile: there})
	if f := b.Check(); f != nil {
		t.Errorf("a file that is there: %v", f)
	}
	b = provisioned(t, &Backend{Container: "a", Host: "tcp://engine:2376", CAFile: there + ".missing"})
	f := b.Check()
	if f == nil || !f.ForGood || f.Reason != scaler.ReasonNotFound {
		t.Errorf("a missing file: %v", f)
	}
	if _, err := b.Open(scaler.Env{Service: "web"}); err == nil {
		t.Error("a backend without its file was opened")
	}
}
