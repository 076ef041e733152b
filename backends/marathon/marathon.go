package marathon

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(new(Backend))
}

// maxPortIndex is more ports than an app can have.
const maxPortIndex = 65535

// Backend runs the instances of a service as tasks of an existing Marathon
// app. Usher changes the number of instances of the app; the definition of the
// app, its health checks, its upgrades and its kill grace period stay as they
// are. The `stop_timeout` of the service has no effect: the time from the stop
// signal to the kill is the app's `taskKillGracePeriodSeconds`.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Backend struct {
	// The id of the app, e.g. `/prod/web`. It must exist when an instance is
	// wanted. Pods are not supported.
	App string `json:"app,omitempty"`

	// The base URLs of the members of the cluster, e.g.
	// `http://master1:8080`, or with a path, as on DC/OS:
	// `https://master/service/marathon`. Any member will do for the API; name
	// all of them as they name themselves (`--hostname`), because credentials
	// follow a redirect to the leader only if the leader is named here.
	URLs []string `json:"urls,omitempty"`

	// Which port of a task takes the requests: its place among the app's
	// `portDefinitions` or `portMappings`. Default: 0.
	PortIndex int `json:"port_index,omitempty"`

	// The name of the port that takes the requests, instead of its place.
	PortName string `json:"port_name,omitempty"`

	// User and password, if the cluster asks for them.
	BasicAuth *BasicAuth `json:"basic_auth,omitempty"`

	// A file with a DC/OS authentication token. It is read anew for every
	// call, so a token can be rotated while Caddy runs. A file that is missing
	// fails the load, the first one of a Caddy aside.
	TokenFile string `json:"token_file,omitempty"`

	// A file with the PEM certificates that the members' certificates are
	// checked against, instead of the system's. A file that is missing fails
	// the load, the first one of a Caddy aside.
	CAFile string `json:"ca_file,omitempty"`

	plan *plan
}

// BasicAuth is a user with a password.
type BasicAuth struct {
	// The name of the user.
	User string `json:"user,omitempty"`

	// The password.
	Password string `json:"password,omitempty"`
}

// plan is a configuration after Provision: placeholders resolved, everything
// checked.
type plan struct {
	app    string
	port   port
	access access

	// caFile is the file of access.ca. While it cannot be used, missing says
	// why, and no member is asked: the system's certificates are no substitute.
	caFile  string
	mu      sync.Mutex // guards missing, and access.ca until missing is nil
	missing *scaler.Failure
}

// complete returns the access, or what this machine lacks for it. If something
// was missing, it is looked for again.
func (p *plan) complete() (access, *scaler.Failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.caFile != "" && p.access.ca == "" {
		p.readCA()
	}
	return p.access, p.missing
}

// readCA reads the certificates of the file.
func (p *plan) readCA() {
	pem, err := os.ReadFile(p.caFile)
	switch {
	case err != nil:
		p.missing = fileFailure(fmt.Errorf("ca_file: %w", err))
	case !x509.NewCertPool().AppendCertsFromPEM(pem):
		p.missing = fileFailure(fmt.Errorf("ca_file %s holds no PEM certificate", p.caFile))
	default:
		p.access.ca, p.missing = string(pem), nil
	}
}

// fileFailure is the failure of a file that the configuration names and that
// cannot be used.
func fileFailure(err error) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonNotFound, ForGood: true, Short: "a file of the configuration cannot be used", Err: err}
	if errors.Is(err, fs.ErrPermission) {
		f.Reason = scaler.ReasonForbidden
	}
	return f
}

// port selects one of an app's ports.
type port struct {
	index int
	name  string // if not empty, the index means nothing
}

func (p port) String() string {
	if p.name != "" {
		return fmt.Sprintf("port %q", p.name)
	}
	return fmt.Sprintf("port %d", p.index)
}

// access is what it takes to talk to a cluster. It is comparable by key.
type access struct {
	urls           []string // without a slash at the end
	user, password string
	tokenFile      string
	ca             string // PEM
}

// key identifies the access. It is derived from secrets and is never shown.
func (a access) key() string {
	text, err := json.Marshal([]any{a.urls, a.user, a.password, a.tokenFile, a.ca})
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("marathon: encoding an access: %v", err))
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// secret says whether calls carry credentials.
func (a access) secret() bool { return a.user != "" || a.tokenFile != "" }

// CaddyModule returns the Caddy module information.
func (*Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.marathon",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Provision resolves and checks the configuration. It reads the CA file,
// calls no server, and changes nothing.
func (b *Backend) Provision(caddy.Context) error {
	p := new(plan)
	resolve := caddy.NewReplacer()
	var broken error
	text := func(what, value string) string {
		out, err := resolve.ReplaceOrErr(value, true, true)
		if err != nil && broken == nil {
			broken = fmt.Errorf("marathon: %s: %w", what, err)
		}
		return out
	}
	p.app = text("app", b.App)
	p.port = port{index: b.PortIndex, name: text("port_name", b.PortName)}
	p.access.tokenFile = text("token_file", b.TokenFile)
	caFile := text("ca_file", b.CAFile)
	if b.BasicAuth != nil {
		p.access.user = text("basic_auth user", b.BasicAuth.User)
		p.access.password = text("basic_auth password", b.BasicAuth.Password)
	}
	urls := make([]string, 0, len(b.URLs))
	for _, u := range b.URLs {
		urls = append(urls, text("url", u))
	}
	if broken != nil {
		return broken
	}

	var err error
	if p.app, err = checkApp(p.app); err != nil {
		return fmt.Errorf("marathon: %w", err)
	}
	if len(urls) == 0 {
		return fmt.Errorf("marathon: app %s needs the url of its cluster: url <url...>, in its backend block or in the global option marathon", p.app)
	}
	for _, u := range urls {
		base, err := checkURL(u)
		if err != nil {
			return fmt.Errorf("marathon: %w", err)
		}
		if !slices.Contains(p.access.urls, base) {
			p.access.urls = append(p.access.urls, base)
		}
	}
	switch {
	case b.PortIndex < 0:
		return fmt.Errorf("marathon: port_index %d: ports are counted from 0", b.PortIndex)
	case b.PortIndex > maxPortIndex:
		return fmt.Errorf("marathon: port_index %d: an app has no more than %d ports", b.PortIndex, maxPortIndex)
	case b.PortIndex > 0 && p.port.name != "":
		return errors.New("marathon: give port_index or port_name, not both")
	case b.BasicAuth != nil && p.access.user == "":
		return errors.New("marathon: basic_auth needs a user")
	case b.BasicAuth != nil && p.access.tokenFile != "":
		return errors.New("marathon: give basic_auth or token_file, not both")
	}
	p.caFile = caFile
	_, _ = p.complete() // what is missing is told by Check and Open
	b.plan = p
	return nil
}

// segment is a part of an app id, as Marathon allows it: words with single dots
// between them. It also allows `.` and `..`, which mean another app.
var segment = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// checkApp returns the id of an app in its absolute form.
func checkApp(id string) (string, error) {
	trimmed := strings.TrimPrefix(id, "/")
	if trimmed == "" {
		return "", errors.New("the id of an app is required, e.g. /prod/web")
	}
	parts := strings.Split(trimmed, "/")
	for _, part := range parts {
		if !segment.MatchString(part) {
			return "", fmt.Errorf("app %q is no id that Marathon allows: its parts are words of a-z, 0-9 and hyphens with single dots between them, and each word begins and ends with a letter or digit", id)
		}
	}
	switch last := parts[len(parts)-1]; last {
	case "tasks", "versions", "restart":
		return "", fmt.Errorf("app %q is no id that Marathon allows: it ends in %s", id, last)
	}
	return "/" + trimmed, nil
}

// checkURL returns the base URL of a member without a slash at its end.
func checkURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		// The error of url.Parse holds the text, which may hold a password.
		return "", errors.New("url: this is no URL of a Marathon; give it as http://host:8080")
	case u.User != nil:
		return "", fmt.Errorf("url %s: credentials do not belong into a URL; use basic_auth or token_file", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return "", fmt.Errorf("url %q is no URL of a Marathon; give it as http://host:8080", text)
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("url %q: give the base URL alone, without ? and #", text)
	}
	return u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

// Open makes the thing that runs. It begins to read and to listen, and waits
// for neither.
func (b *Backend) Open(env scaler.Env) (scaler.Scaler, error) {
	if b.plan == nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "backend not provisioned",
			Detail: "the marathon backend of " + env.Service + " was opened before it was provisioned",
		}
	}
	a, missing := b.plan.complete()
	if missing != nil {
		return nil, missing
	}
	return open(b.plan.app, b.plan.port, a, env)
}

// Check tells whether the files that the configuration names can be used. It
// asks no member of the cluster.
func (b *Backend) Check() *scaler.Failure {
	a, missing := b.plan.complete()
	if missing != nil || a.tokenFile == "" {
		return missing
	}
	if _, err := readToken(a.tokenFile); err != nil {
		return fileFailure(err)
	}
	return nil
}

// Shared reports whether Caddys can share the instances: all of them see the
// same.
func (*Backend) Shared() bool { return true }

// Fingerprint identifies the app, the port and the access to the cluster. The
// access shapes no instance; a change of it alone is taken over by Update,
// without a new revision.
func (b *Backend) Fingerprint() string {
	p := b.plan
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.missing != nil {
		return fmt.Sprintf("%s %q %s without %q", p.app, p.port, p.access.key(), p.caFile)
	}
	return fmt.Sprintf("%s %q %s", p.app, p.port, p.access.key())
}

// Redacted returns the configuration as it was written, without the password.
func (b *Backend) Redacted() any {
	shown := *b
	shown.plan = nil
	if b.BasicAuth != nil {
		shown.BasicAuth = &BasicAuth{User: b.BasicAuth.User, Password: "***"}
	}
	return &shown
}

// Interface guards.
var (
	_ caddy.Module      = (*Backend)(nil)
	_ caddy.Provisioner = (*Backend)(nil)
	_ scaler.Checker    = (*Backend)(nil)
	_ scaler.Backend    = (*Backend)(nil)
)
