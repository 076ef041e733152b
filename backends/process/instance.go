package process

import (
	"crypto/rand"
	"encoding/base32"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// The variables that Usher sets.
const (
	varInstance = "USHER_INSTANCE"
	varService  = "USHER_SERVICE"
)

// instance is one process, from before its fork until everything it left is
// gone. The fields of the second block are guarded by the runner's lock.
type instance struct {
	id    string
	since time.Time
	keep  bool
	uid   uint32 // of the user that its sockets belong to
	// adopted is true if an earlier Caddy has started it, wasReady if it was
	// ready there.
	adopted, wasReady bool

	port    int            // 0: none
	fixed   netip.AddrPort // what the program listens on by itself, if that is so
	socket  string         // "": none
	instead error          // why the socket is in a directory with a random name
	passed  *passedListener
	appears appearance // nil: nothing to wait for
	child   *child
	output  *output
	source  source
	record  *record
	peers   peers

	network, address string // what is reported; empty until known
	stopping         bool
	ended            bool // its main process has
	gone             bool // it was reported for the last time
	killAt           time.Time
	killTimer        *time.Timer
	failure          *scaler.Failure
}

// idLength is the length of an instance's id: 80 random bits.
const idLength = 16

var idEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// newID returns an id that no other instance has, ever.
func newID() string {
	var raw [10]byte
	_, _ = rand.Read(raw[:]) // never fails
	lower := []byte(idEncoding.EncodeToString(raw[:]))
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}

var idPattern = regexp.MustCompile(`^[0-9a-v]{16}$`)

func isInstanceID(s string) bool { return idPattern.MatchString(s) }

// where returns where the instance will be reached.
func (in *instance) where() (network, address string) {
	if in.socket != "" {
		return "unix", in.socket
	}
	return "tcp", in.told().String()
}

// told returns the address that the instance was told to listen on, or that its
// program has by itself. It is for instances with a port.
func (in *instance) told() netip.AddrPort {
	if in.fixed.IsValid() {
		return in.fixed
	}
	return onLoopback(in.port)
}

// takeEndpoint gets what the instance listens on.
func (in *instance) takeEndpoint(p *plan, local scaler.LocalOptions) *scaler.Failure {
	if p.fixed.IsValid() {
		return in.takeFixed(p.fixed)
	}
	var f *scaler.Failure
	switch p.listen {
	case listenTCP:
		in.port, f = ports.take(local.PortFrom, local.PortTo, checkFree)
	case listenFD:
		in.port, f = ports.take(local.PortFrom, local.PortTo, func(port int) (err error) {
			in.passed, err = listenOn(port)
			return err
		})
	case listenUnix:
		var base string
		if base, f, in.instead = readyBase(); f == nil {
			in.socket = socketPath(base, in.id)
		}
	}
	return f
}

// makeEndpoint makes what it needs for that on the file system.
func (in *instance) makeEndpoint(p *plan) *scaler.Failure {
	if in.socket == "" {
		return nil
	}
	if f := makeSocketDir(in.socket, p.account); f != nil {
		return f
	}
	in.appears = watchFor(in.socket)
	return nil
}

// leaveEndpoint gives it back. The directory of the socket stays if something of
// the instance still runs.
func (in *instance) leaveEndpoint(ran, gone bool) {
	in.passed.close()
	if in.appears != nil && !ran {
		in.appears.close()
	}
	if in.port != 0 {
		// A fixed port does not rest: the next instance needs that very one.
		ports.give(in.told(), ran && !in.fixed.IsValid())
	}
	if in.socket != "" && gone {
		// What cannot be removed is harmless: nothing connects there any more.
		_ = removeSocket(in.socket)
	}
}

// launchFor puts together what is forked.
func (in *instance) launchFor(p *plan, service string) (launch, *scaler.Failure) {
	values := map[string]string{keyInstance: in.id, keyService: service}
	if in.port != 0 {
		_, values[keyAddress] = in.where()
		values[keyPort] = strconv.Itoa(in.port)
	}
	if in.socket != "" {
		values[keySocket] = in.socket
	}
	env := in.environment(p, service, values)
	l := launch{dir: p.dir.fill(values), account: p.account, keep: in.keep}
	if f := checkDir(l.dir); f != nil {
		return l, f
	}
	command := p.command.fill(values)
	path, f := findCommand(command, l.dir, env["PATH"])
	if f != nil {
		return l, f
	}
	l.path, l.argv = path, make([]string, 0, 1+len(p.args))
	l.argv = append(l.argv, command)
	for _, arg := range p.args {
		l.argv = append(l.argv, arg.fill(values))
	}
	if in.passed != nil {
		l.path, l.argv = passShell, passArgs(path, l.argv)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		l.env = append(l.env, name+"="+env[name])
	}
	return l, nil
}

// environment returns the variables of the instance: few of Caddy's, Usher's,
// those of the configuration, and those that must not be anything else.
func (in *instance) environment(p *plan, service string, values map[string]string) map[string]string {
	env := make(map[string]string)
	for _, name := range inheritedVariables {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	env["PATH"] = defaultPath()
	if p.account != nil && !p.account.Own {
		env["HOME"] = p.account.Home
	}
	if in.port != 0 {
		port := values[keyPort]
		env["PORT"], env["PORT0"], env["HOST"] = port, port, in.told().Addr().String()
	}
	for name, value := range p.env {
		env[name] = value.fill(values)
	}
	if in.passed != nil {
		maps.Copy(env, passVariables(service))
	}
	env[varService], env[varInstance] = service, in.id
	return env
}

// outputLogger is where the lines of the instance go; nil if they are dropped.
func (in *instance) outputLogger(p *plan, logger *slog.Logger) *slog.Logger {
	if !p.logLines {
		return nil
	}
	return logger.With(slog.String("instance", in.id))
}

// newOutput makes what takes the lines of the instance.
func (in *instance) newOutput(p *plan, env scaler.Env) *output {
	o := newOutput(in.outputLogger(p, env.Logger()))
	if env.Output != nil && p.logLines {
		o.keep = func(stream, text string, now time.Time) {
			env.Output(scaler.OutputLine{Instance: in.id, Stream: stream, Text: text, Time: now})
		}
	}
	return o
}

// openOutput prepares what the process writes to.
func (in *instance) openOutput(p *plan, dir string, env scaler.Env) *scaler.Failure {
	in.output = in.newOutput(p, env)
	var err error
	if in.keep {
		var f *followed
		if f, err = newFollowed(in.output, outputFilesOf(dir, in.id)); err == nil {
			in.source = f
			return nil
		}
	} else {
		var f *pipes
		if f, err = newPipes(in.output); err == nil {
			in.source = f
			return nil
		}
	}
	if f := quotaFailure(err); f != nil {
		return f
	}
	return &scaler.Failure{Reason: scaler.ReasonForbidden, Short: "no place for the output", Err: err}
}

// endWithCaddy takes back that an instance which has not been started outlives
// Caddy.
func (in *instance) endWithCaddy(l *launch) {
	in.keep, l.keep = false, false
	in.record.Keep, in.record.Output = false, nil
}

// reported is the instance as the control loop sees it.
func (in *instance) reported() scaler.Instance {
	i := scaler.Instance{
		ID: in.id, Network: in.network, Address: in.address,
		Since: in.since, Failure: in.failure, Adopted: in.adopted, WasReady: in.wasReady,
	}
	switch {
	case in.gone:
		i.Phase = scaler.PhaseEnded
	case in.stopping:
		i.Phase = scaler.PhaseStopping
	}
	return i
}
