package process

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(new(Backend))
}

// Backend runs each instance of a service as a process of this machine. The
// command comes from the configuration alone, never from a request.
//
// In `command`, `args`, `dir` and the values of `env` these placeholders stand
// for what an instance gets when it starts: `{usher.port}`, `{usher.address}`
// (host:port), `{usher.socket}`, `{usher.instance}` and `{usher.service}`.
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded. Other
// placeholders of Caddy are refused; a backslash before the brace keeps such a
// text as it is. Other braces are left alone.
//
// Instances start with a minimal environment: PATH, HOME, LANG and TZ, what
// `env` names, USHER_SERVICE and USHER_INSTANCE, and, where they listen on a
// port, PORT, PORT0 and HOST.
type Backend struct {
	// The program to run: an absolute path, a path with a slash relative to
	// `dir`, or a name that is looked up on the PATH of the instance. No shell
	// is involved.
	Command string `json:"command"`

	// The arguments of the command.
	Args []string `json:"args,omitempty"`

	// The working directory of the instances. Default: Caddy's own.
	Dir string `json:"dir,omitempty"`

	// Environment variables. They go before those that Usher sets, PORT and
	// HOST included; names that begin with USHER_ or LISTEN_ are Usher's own.
	// The values are treated as secrets: they are never shown.
	Env map[string]string `json:"env,omitempty"`

	// The user, by name or number, that the instances run as, with the groups
	// that this user has. Caddy needs the right to switch (root, or CAP_SETUID,
	// CAP_SETGID and CAP_KILL). Default: Caddy's own user.
	User string `json:"user,omitempty"`

	// The signal that asks an instance to stop, with or without SIG in front.
	// It goes to the whole process group, and KILL follows after the service's
	// `stop_timeout`. Default: TERM.
	StopSignal string `json:"stop_signal,omitempty"`

	// What the instances listen on. `tcp`: a loopback port of its own that the
	// instance opens. `unix`: a socket that it creates at `{usher.socket}`.
	// `fd`: a listening TCP socket that is passed as file descriptor 3, as
	// systemd does it (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES; Linux only);
	// there `{usher.port}` and `{usher.address}` are those of the passed
	// socket. Default: tcp.
	Listen string `json:"listen,omitempty"`

	// What becomes of what the instances write. `log`: it goes to Caddy's log,
	// line by line. `discard`: it is dropped. The last lines are kept for
	// failure messages either way. Default: log.
	Output string `json:"output,omitempty"`

	plan *plan
}

// The kinds of things that an instance listens on.
const (
	listenTCP  = "tcp"
	listenUnix = "unix"
	listenFD   = "fd"
)

// plan is a configuration after Provision: defaults filled in, everything
// resolved that does not differ between instances.
type plan struct {
	command    template
	args       []template
	dir        template
	env        map[string]template
	account    *account // nil: Caddy's own
	listen     string
	stopSignal stopSignal
	logLines   bool
}

// CaddyModule returns the Caddy module information.
func (*Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.process",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Provision resolves the configuration. It reads files that placeholders
// name, and changes nothing.
func (b *Backend) Provision(caddy.Context) error {
	p := &plan{
		args:     make([]template, len(b.Args)),
		listen:   b.Listen,
		logLines: true,
	}
	if len(b.Env) > 0 {
		p.env = make(map[string]template, len(b.Env))
	}
	switch b.Listen {
	case "":
		p.listen = listenTCP
	case listenTCP, listenUnix:
	case listenFD:
		if !canPassListener {
			return errors.New("process: listen fd passes a socket as systemd does, which Usher does on Linux only; use listen tcp or listen unix here")
		}
	default:
		return fmt.Errorf("process: listen %q is not known; it is one of tcp, unix, fd", b.Listen)
	}
	switch b.Output {
	case "", "log":
	case "discard":
		p.logLines = false
	default:
		return fmt.Errorf("process: output %q is not known; it is one of log, discard", b.Output)
	}
	var err error
	if p.stopSignal, err = parseStopSignal(b.StopSignal); err != nil {
		return fmt.Errorf("process: %w", err)
	}

	resolve := newResolver(p.listen)
	if p.command, err = resolve.parse(b.Command); err != nil {
		return fmt.Errorf("process: command: %w", err)
	}
	if len(p.command) == 0 {
		return errors.New("process: a command is required")
	}
	for i, arg := range b.Args {
		if p.args[i], err = resolve.parse(arg); err != nil {
			return fmt.Errorf("process: argument %d of %s: %w", i+1, b.Command, err)
		}
	}
	if p.dir, err = resolve.parse(b.Dir); err != nil {
		return fmt.Errorf("process: dir: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Env)) {
		if err := checkVariable(name); err != nil {
			return fmt.Errorf("process: %w", err)
		}
		if p.env[name], err = resolve.parse(b.Env[name]); err != nil {
			return fmt.Errorf("process: env %s: %w", name, err)
		}
	}
	if b.User != "" {
		user, err := resolve.parse(b.User)
		if err != nil {
			return fmt.Errorf("process: user: %w", err)
		}
		name, ok := user.constant()
		if !ok {
			return errors.New("process: user: all instances run as one user; {usher.*} has no place in its name")
		}
		if p.account, err = lookupAccount(name); err != nil {
			return fmt.Errorf("process: %w", err)
		}
	}
	b.plan = p
	return nil
}

// checkVariable refuses names that cannot be, or that Usher sets itself and
// relies on.
func checkVariable(name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "=\x00"):
		return fmt.Errorf("env %q is no name of a variable", name)
	case strings.HasPrefix(name, "USHER_"), strings.HasPrefix(name, "LISTEN_"):
		return fmt.Errorf("env %s is set by Usher itself; choose another name", name)
	}
	return nil
}

// Validate checks what can be known before the first start: that the command,
// the directory and the right to switch to the user are there.
func (b *Backend) Validate() error {
	p := b.plan
	dir, dirKnown := p.dir.constant()
	if dirKnown {
		if f := checkDir(dir); f != nil {
			return fmt.Errorf("process: %w", f)
		}
	}
	if p.account != nil {
		if err := p.account.checkRight(); err != nil {
			return fmt.Errorf("process: %w", err)
		}
	}
	command, commandKnown := p.command.constant()
	path, pathKnown := p.searchPath()
	if commandKnown && (dirKnown || filepath.IsAbs(command)) && (pathKnown || isPath(command)) {
		if _, f := findCommand(command, dir, path); f != nil {
			return fmt.Errorf("process: %w", f)
		}
	}
	if p.listen == listenUnix {
		if err := checkSocketLength(); err != nil {
			return fmt.Errorf("process: %w", err)
		}
	}
	return nil
}

// searchPath returns the PATH that instances will have, if that is the same
// for all.
func (p *plan) searchPath() (string, bool) {
	if own, ok := p.env["PATH"]; ok {
		return own.constant()
	}
	return defaultPath(), true
}

// Open makes the thing that runs. Nothing is started before the first order.
func (b *Backend) Open(env scaler.Env) (scaler.Scaler, error) {
	if b.plan == nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "backend not provisioned",
			Detail: "the process backend of " + env.Service + " was opened before it was provisioned",
		}
	}
	warnAtOpen(env)
	r := newRunner(b.plan, env)
	r.adopt()
	r.reportNow()
	return r, nil
}

// Fingerprint identifies everything that shapes an instance.
func (b *Backend) Fingerprint() string { return b.plan.fingerprint() }

func (p *plan) fingerprint() string {
	form := struct {
		Command template
		Args    []template
		Dir     template
		Env     map[string]template
		Account *account
		Stop    string
		Listen  string
		Log     bool
	}{p.command, p.args, p.dir, p.env, p.account, p.stopSignal.String(), p.listen, p.logLines}
	// encoding/json sorts the keys of maps, so equal plans encode equally.
	text, err := json.Marshal(form)
	if err != nil {
		// Strings and numbers always encode.
		panic(fmt.Sprintf("process: encoding a plan: %v", err))
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Redacted returns the configuration as it was written, without the values of
// the environment.
func (b *Backend) Redacted() any {
	shown := *b
	shown.plan = nil
	if len(b.Env) > 0 {
		shown.Env = make(map[string]string, len(b.Env))
		for name := range b.Env {
			shown.Env[name] = "***"
		}
	}
	return &shown
}

// Interface guards.
var (
	_ caddy.Module      = (*Backend)(nil)
	_ caddy.Provisioner = (*Backend)(nil)
	_ caddy.Validator   = (*Backend)(nil)
	_ scaler.Backend    = (*Backend)(nil)
	_ scaler.Recoverer  = (*Backend)(nil)
)
