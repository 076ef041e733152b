package docker

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/docker/go-units"

	"github.com/caddy-usher/usher/scaler"
)

// form says which containers are those of a service.
type form string

const (
	formContainer form = "container"
	formCompose   form = "compose"
	formLabel     form = "label"
	formImage     form = "image"
)

const (
	addressAuto      = "auto"
	addressContainer = "container"
	addressPublished = "published"

	idleStop  = "stop"
	idlePause = "pause"

	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// plan is a configuration after Provision: placeholders resolved, everything
// checked. It does not change.
type plan struct {
	access access

	form       form
	name       string // a container, project/service, the key of a label, or an image
	labelValue string
	hasValue   bool // the label's value matters

	port    int // 0: the only one that is exposed
	network string
	address string

	pause      bool
	stopPaused time.Duration
	copies     bool

	command  []string
	env      []string // NAME=value, sorted
	volumes  []string
	memory   int64 // bytes
	nanoCPUs int64
	user     string
	labels   map[string]string
	pull     string
	registry *RegistryAuth
}

// owned says whether the containers are this Caddy's: nothing else starts them.
func (p *plan) owned() bool { return p.form == formImage || p.copies }

// String names what the service's containers are, for operators.
func (p *plan) String() string {
	switch p.form {
	case formCompose:
		return "Compose service " + p.name
	case formLabel:
		if p.hasValue {
			return "label " + p.name + "=" + p.labelValue
		}
		return "label " + p.name
	}
	return string(p.form) + " " + p.name
}

// access is what it takes to talk to an engine.
type access struct {
	Host     string `json:"host"`
	CAFile   string `json:"ca_file,omitempty"`
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
}

// key identifies the access.
func (a access) key() string {
	return strings.Join([]string{a.Host, a.CAFile, a.CertFile, a.KeyFile}, "\x00")
}

// check tells whether the files can be read.
func (a access) check() *scaler.Failure {
	for _, file := range []string{a.CAFile, a.CertFile, a.KeyFile} {
		if file == "" {
			continue
		}
		f, err := os.Open(file)
		if err == nil {
			f.Close()
			continue
		}
		failure := &scaler.Failure{Reason: scaler.ReasonNotFound, ForGood: true, Short: "a file of the configuration cannot be used", Err: err}
		if errors.Is(err, fs.ErrPermission) {
			failure.Reason = scaler.ReasonForbidden
		}
		return failure
	}
	return nil
}

// defaultHost is where Docker listens unless it is told otherwise.
func defaultHost() string {
	if runtime.GOOS == "windows" {
		return "npipe:////./pipe/docker_engine"
	}
	return "unix:///var/run/docker.sock"
}

// resolver resolves placeholders, and remembers the first that it could not.
type resolver struct {
	replacer *caddy.Replacer // nil leaves them as they are
	err      error
}

func (r *resolver) text(what, value string) string {
	if r.replacer == nil {
		return value
	}
	out, err := r.replacer.ReplaceOrErr(value, true, true)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", what, err)
	}
	return out
}

func (r *resolver) texts(what string, values []string) []string {
	var all []string
	for _, v := range values {
		all = append(all, r.text(what, v))
	}
	return all
}

// resolve returns the plan of b. Without a replacer placeholders stay.
func (b *Backend) resolve(with *caddy.Replacer) (*plan, error) {
	r := &resolver{replacer: with}
	p := &plan{
		access: access{
			Host: r.text("host", b.Host), CAFile: r.text("ca_file", b.CAFile),
			CertFile: r.text("cert_file", b.CertFile), KeyFile: r.text("key_file", b.KeyFile),
		},
		port: b.Port, network: r.text("network", b.Network), address: b.Address,
		stopPaused: time.Duration(b.PauseTimeout), copies: b.Copies,
		command: r.texts("command", b.Command), volumes: r.texts("volume", b.Volumes),
		user: r.text("user", b.User), pull: b.Pull,
	}
	for _, name := range slices.Sorted(maps.Keys(b.Env)) {
		p.env = append(p.env, name+"="+r.text("env "+name, b.Env[name]))
	}
	for key, value := range b.Labels {
		if p.labels == nil {
			p.labels = make(map[string]string)
		}
		p.labels[key] = r.text("label "+key, value)
	}
	if a := b.RegistryAuth; a != nil {
		p.registry = &RegistryAuth{User: r.text("registry_auth user", a.User), Password: r.text("registry_auth password", a.Password)}
	}
	memory := r.text("memory", b.Memory)
	if err := b.which(p, r); r.err != nil || err != nil {
		return nil, cmp.Or(r.err, err)
	}
	for _, check := range []func() error{
		p.access.complete, p.checkReach,
		func() error { return b.checkRest(p) }, func() error { return b.checkImage(p, memory) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// which finds out which containers are meant.
func (b *Backend) which(p *plan, r *resolver) error {
	given := 0
	for f, value := range map[form]string{formContainer: b.Container, formCompose: b.Compose, formLabel: b.Label, formImage: b.Image} {
		if value != "" {
			given++
			p.form, p.name = f, r.text(string(f), value)
		}
	}
	switch {
	case given == 0:
		return errors.New("say which containers: give container, compose, label or image")
	case given > 1:
		return errors.New("give one of container, compose, label and image, not several")
	}
	switch p.form {
	case formCompose:
		project, service, ok := strings.Cut(p.name, "/")
		if !ok || project == "" || service == "" || strings.Contains(service, "/") {
			return fmt.Errorf("compose %q: give the project and the service, as <project>/<service>", p.name)
		}
		if !isName(project) || !isName(service) {
			return fmt.Errorf("compose %q: %s", p.name, noName)
		}
	case formLabel:
		p.name, p.labelValue, p.hasValue = strings.Cut(p.name, "=")
		if p.name == "" {
			return errors.New("label needs a key: label <key>[=<value>]")
		}
	case formContainer:
		p.name = strings.TrimPrefix(p.name, "/")
		if p.name != "" && !isName(p.name) {
			return fmt.Errorf("container %q: %s", p.name, noName)
		}
	}
	if p.name == "" {
		return fmt.Errorf("%s is empty", p.form)
	}
	return nil
}

// objectName is what a container and the parts of a Compose service can be called.
var objectName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

const noName = "a name holds letters, digits, dots, underscores and hyphens, and begins with a letter or digit"

// isName says whether name can be one, or is not known before its placeholders
// are.
func isName(name string) bool { return strings.Contains(name, "{") || objectName.MatchString(name) }

// complete fills in the default host, and checks the rest.
func (a *access) complete() error {
	if a.Host == "" {
		a.Host = defaultHost()
	}
	u, err := url.Parse(a.Host)
	switch {
	case err != nil:
		return errors.New("host: give it as unix:///var/run/docker.sock or tcp://host:2376")
	case u.Scheme != "unix" && u.Scheme != "tcp" && u.Scheme != "npipe":
		return fmt.Errorf("host %q: give it as unix:///var/run/docker.sock or tcp://host:2376", a.Host)
	case u.User != nil:
		return fmt.Errorf("host %s: credentials do not belong into it; use cert_file and key_file", u.Redacted())
	case u.Scheme == "tcp" && u.Port() == "":
		return fmt.Errorf("host %q has no port; Docker uses 2376 with TLS and 2375 without", a.Host)
	case u.Scheme != "tcp" && (a.CAFile != "" || a.CertFile != "" || a.KeyFile != ""):
		return fmt.Errorf("host %s is a socket of this machine: ca_file, cert_file and key_file are for tcp:// hosts", a.Host)
	case (a.CertFile == "") != (a.KeyFile == ""):
		return errors.New("cert_file and key_file belong together: give both or none")
	}
	return nil
}

// local says whether the host is a socket of this machine.
func (a access) local() bool { return !strings.HasPrefix(a.Host, "tcp://") }

// tls says whether the engine is spoken to with TLS.
func (a access) tls() bool { return a.CAFile != "" || a.CertFile != "" }

// checkReach checks how containers are reached.
func (p *plan) checkReach() error {
	switch p.address {
	case "":
		p.address = addressAuto
	case addressAuto, addressContainer, addressPublished:
	default:
		return fmt.Errorf("address '%s' is unknown: use auto, container or published", p.address)
	}
	if p.port < 0 || p.port > 65535 {
		return fmt.Errorf("port %d: ports are from 1 to 65535", p.port)
	}
	return nil
}

// checkRest checks how idle instances rest, and the copies.
func (b *Backend) checkRest(p *plan) error {
	switch b.Idle {
	case "", idleStop:
	case idlePause:
		p.pause = true
	default:
		return fmt.Errorf("idle '%s' is unknown: use stop or pause", b.Idle)
	}
	switch {
	case b.PauseTimeout < 0 || b.PauseTimeout > 0 && p.stopPaused < scaler.MinDuration || p.stopPaused > scaler.MaxDuration:
		return fmt.Errorf("pause_timeout %s: it is from %s to %s", p.stopPaused, scaler.MinDuration, scaler.MaxDuration)
	case b.PauseTimeout > 0 && !p.pause:
		return errors.New("pause_timeout has no effect without `idle pause`")
	case p.copies && p.form == formImage:
		return errors.New("copies is for containers that exist; of an image, Usher makes as many containers as are wanted")
	}
	return nil
}

// checkImage checks the options of containers that Usher makes.
func (b *Backend) checkImage(p *plan, memory string) error {
	if p.form != formImage {
		for option, given := range map[string]bool{
			"command": len(b.Command) > 0, "env": len(b.Env) > 0, "volume": len(b.Volumes) > 0, "memory": b.Memory != "",
			"cpus": b.CPUs != 0, "user": b.User != "", "labels": len(b.Labels) > 0, "pull": b.Pull != "", "registry_auth": b.RegistryAuth != nil,
		} {
			if given {
				return fmt.Errorf("%s is for containers that Usher makes of an image; %s exists already and is left as it is", option, p)
			}
		}
		return nil
	}
	if memory != "" {
		n, err := units.RAMInBytes(memory)
		if err != nil || n < minMemory {
			return fmt.Errorf("memory %q: give it as 256m or 1g, and at least 6m", memory)
		}
		p.memory = n
	}
	if b.CPUs < 0 || b.CPUs > 0 && b.CPUs < 0.01 || b.CPUs > 10_000 {
		return fmt.Errorf("cpus %v: give a number of CPUs, such as 0.5", b.CPUs)
	}
	p.nanoCPUs = int64(b.CPUs * 1e9)
	switch p.pull {
	case "":
		p.pull = pullMissing
	case pullMissing, pullAlways, pullNever:
	default:
		return fmt.Errorf("pull '%s' is unknown: use missing, always or never", p.pull)
	}
	for name := range b.Env {
		if name == "" || strings.Contains(name, "=") {
			return fmt.Errorf("env %q is no name of a variable", name)
		}
	}
	for key := range p.labels {
		if key == "" || strings.HasPrefix(key, labelPrefix) {
			return fmt.Errorf("label %q: labels that begin with %s are Usher's own", key, labelPrefix)
		}
	}
	if p.registry != nil && (p.registry.User == "" || p.pull == pullNever) {
		return errors.New("registry_auth needs a user, and has no effect with `pull never`")
	}
	return nil
}

// minMemory is the least limit of memory that Docker takes.
const minMemory = 6 << 20
