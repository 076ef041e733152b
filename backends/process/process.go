package process

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

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
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded, and
// again by a restart of the service. Other placeholders of Caddy are refused; a backslash before the brace keeps such a
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

	// Files with environment variables, one NAME=value on a line, as Docker and
	// systemd read them; a relative path counts from Caddy's working directory.
	// Empty lines and lines that begin with `#` or `;` are skipped. A value may
	// stand in single quotes (kept as it is) or double quotes (`\n`, `\t`, `\"`,
	// `\\` and `\$` are read as in a shell), and then go on over several lines.
	// Nothing is expanded, and placeholders are not replaced. Of several files
	// the later goes before the earlier, and `env` goes before all files.
	//
	// The files are read when the configuration is loaded, and again by a
	// restart of the service: what they say then shapes the instances, so a
	// changed file is a new revision at the next load. A file that cannot be
	// read fails the load, the first one of a Caddy aside.
	EnvFile []string `json:"env_file,omitempty"`

	// The user, by name or number, that the instances run as, with the groups
	// that this user has. Caddy needs the right to switch (root, or CAP_SETUID,
	// CAP_SETGID and CAP_KILL). Without CAP_SYS_PTRACE, what an instance has put
	// into a session of its own survives a stop; `listen unix` also needs
	// CAP_CHOWN and CAP_DAC_OVERRIDE. What is missing is named when the
	// configuration is loaded. Default: Caddy's own user.
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

	// With `listen` tcp: the loopback address and port on which the program
	// listens whatever it is told, e.g. `127.0.0.1:3000`; `:3000` and
	// `localhost:3000` mean the same. `[::1]:3000` is for a program that listens
	// on IPv6 only. The service can have one instance at most then, no second service
	// can have the address, and the port is not taken from `ports`. `{usher.port}`
	// and PORT are this port. Default: each instance gets a port of its own.
	Address string `json:"address,omitempty"`

	// What becomes of what the instances write. `log`: it goes to Caddy's log,
	// line by line, at most 1000 lines and 256 KiB a second. `discard`: it is
	// dropped. The last lines, and the first ones of a crash, are kept for
	// failure messages either way. Default: log.
	Output string `json:"output,omitempty"`

	state *state
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
	fixed      netip.AddrPort // valid if the program listens there whatever it is told
	stopSignal stopSignal
	logLines   bool

	// missing says what this machine lacks to resolve the configuration: a
	// file or the user. Such a plan starts nothing. Nil if it is complete.
	missing *scaler.Failure

	// identity is what fingerprint returned; nil before. A load asks for it
	// several times for each service.
	identity atomic.Pointer[string]
}

// CaddyModule returns the Caddy module information.
func (*Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.process",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Provision resolves the configuration. It reads files that placeholders
// name, and changes nothing. A file or a user that is missing is Check's
// business: the configuration is not wrong.
func (b *Backend) Provision(ctx caddy.Context) error {
	p, err := b.resolve()
	if err != nil {
		return fmt.Errorf("process: %w", err)
	}
	b.state = &state{plan: p}
	b.warnAtLoad(ctx.Slogger)
	return nil
}

// resolve makes a plan of the configuration, as variables, files and users are
// now.
func (b *Backend) resolve() (*plan, error) {
	p := &plan{
		args:     make([]template, len(b.Args)),
		listen:   b.Listen,
		logLines: true,
	}
	switch b.Listen {
	case "":
		p.listen = listenTCP
	case listenTCP, listenUnix:
	case listenFD:
		if !canPassListener {
			return nil, errors.New("listen fd passes a socket as systemd does, which Usher does on Linux only; use listen tcp or listen unix here")
		}
	default:
		return nil, fmt.Errorf("listen %q is not known; it is one of tcp, unix, fd", b.Listen)
	}
	switch b.Output {
	case "", "log":
	case "discard":
		p.logLines = false
	default:
		return nil, fmt.Errorf("output %q is not known; it is one of log, discard", b.Output)
	}
	var err error
	if p.stopSignal, err = parseStopSignal(b.StopSignal); err != nil {
		return nil, err
	}

	resolve := newResolver(p.listen)
	if p.fixed, err = b.fixedAddress(resolve); p.mistake(err) {
		return nil, err
	}
	if p.command, err = resolve.parse(b.Command); p.mistake(err) {
		return nil, fmt.Errorf("command: %w", err)
	}
	if len(p.command) == 0 && err == nil {
		return nil, errors.New("a command is required")
	}
	for i, arg := range b.Args {
		if p.args[i], err = resolve.parse(arg); p.mistake(err) {
			return nil, fmt.Errorf("argument %d of %s: %w", i+1, b.Command, err)
		}
	}
	if p.dir, err = resolve.parse(b.Dir); p.mistake(err) {
		return nil, fmt.Errorf("dir: %w", err)
	}
	if p.env, err = b.environment(p, resolve); err != nil {
		return nil, err
	}
	if p.account, err = b.account(resolve); p.mistake(err) {
		return nil, err
	}
	if p.listen == listenUnix && p.account != nil && !p.account.Own && !canCheckPeers {
		return nil, errors.New("listen unix together with user lets the instance put a link to any other socket in the place of its own, and this system does not show where a connection leads; use listen tcp, or leave user out")
	}
	return p, nil
}

// mistake tells whether err says that the configuration is wrong. That
// something is missing on this machine is noted in the plan.
func (p *plan) mistake(err error) bool {
	f, ok := errors.AsType[*scaler.Failure](err)
	if ok && p.missing == nil {
		p.missing = f
	}
	return err != nil && !ok
}

// account returns the user that instances run as, or nil if that is Caddy's.
func (b *Backend) account(resolve resolver) (*account, error) {
	if b.User == "" {
		return nil, nil
	}
	user, err := resolve.parse(b.User)
	if err != nil {
		return nil, fmt.Errorf("user: %w", err)
	}
	name, ok := user.constant()
	if !ok {
		return nil, errors.New("user: all instances run as one user; {usher.*} has no place in its name")
	}
	return lookupAccount(name)
}

// environment returns the variables of `env` and of the files.
func (b *Backend) environment(p *plan, resolve resolver) (map[string]template, error) {
	files, err := b.fileEnv(resolve)
	if p.mistake(err) {
		return nil, err
	}
	if len(files)+len(b.Env) == 0 {
		return nil, nil
	}
	env := make(map[string]template, len(files)+len(b.Env))
	for name, value := range files {
		if value == "" {
			env[name] = nil
		} else {
			env[name] = template{{Text: value}}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.Env)) {
		if err := checkVariable(name); err != nil {
			return nil, err
		}
		if env[name], err = resolve.parse(b.Env[name]); p.mistake(err) {
			return nil, fmt.Errorf("env %s: %w", name, err)
		}
	}
	return env, nil
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
	if b.state == nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "backend not provisioned",
			Detail: "the process backend of " + env.Service + " was opened before it was provisioned",
		}
	}
	p := b.complete()
	if p.missing != nil {
		return nil, p.missing
	}
	warnAtOpen(env)
	p.warnRights(env)
	r := newRunner(p, env)
	r.adopt()
	r.reportNow()
	return r, nil
}

// Fingerprint identifies everything that shapes an instance.
func (b *Backend) Fingerprint() string {
	p := b.state.current()
	if p.missing == nil {
		return p.fingerprint()
	}
	// What shapes an instance is not known yet. The same text that lacks the
	// same things is the same.
	text, err := json.Marshal(b)
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("process: encoding a configuration: %v", err))
	}
	sum := sha256.Sum256(text)
	return "incomplete-" + hex.EncodeToString(sum[:])
}

// TellsOutput says whether what the instances write can be shown.
func (b *Backend) TellsOutput() bool { return b.state != nil && b.state.current().logLines }

func (p *plan) fingerprint() string {
	if known := p.identity.Load(); known != nil {
		return *known
	}
	form := struct {
		Command template
		Args    []template
		Dir     template
		Env     map[string]template
		Account *account
		Stop    string
		Listen  string
		Log     bool
		Fixed   string `json:",omitempty"`
	}{p.command, p.args, p.dir, p.env, p.account, p.stopSignal.String(), p.listen, p.logLines, ""}
	if p.fixed.IsValid() {
		form.Fixed = p.fixed.String()
	}
	// encoding/json sorts the keys of maps, so equal plans encode equally.
	text, err := json.Marshal(form)
	if err != nil {
		// Strings and numbers always encode.
		panic(fmt.Sprintf("process: encoding a plan: %v", err))
	}
	sum := sha256.Sum256(text)
	identity := hex.EncodeToString(sum[:])
	p.identity.Store(&identity)
	return identity
}

// Redacted returns the configuration as it was written, without the values of
// the environment.
func (b *Backend) Redacted() any {
	shown := *b
	shown.state = nil
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
	_ caddy.Module        = (*Backend)(nil)
	_ caddy.Provisioner   = (*Backend)(nil)
	_ scaler.Backend      = (*Backend)(nil)
	_ scaler.Checker      = (*Backend)(nil)
	_ scaler.Refresher    = (*Backend)(nil)
	_ scaler.Recoverer    = (*Backend)(nil)
	_ scaler.OutputTeller = (*Backend)(nil)
)
