package marathon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discovery"
)

func init() {
	caddy.RegisterModule(new(Discoverer))
}

// Discoverer makes services of the apps of a Marathon cluster that have the label
// `USHER_ENABLE` with the value `true`. The service's backend is that very app.
// Further labels say more: `USHER_NAME` (default: the app's id with hyphens for
// slashes), `USHER_HOSTS`, `USHER_INSTANCES`, `USHER_CONCURRENCY`,
// `USHER_IDLE_TIMEOUT`, `USHER_START_TIMEOUT`, `USHER_DRAIN_TIMEOUT`,
// `USHER_READY`, `USHER_PORT`, `USHER_SCALE`. Others with that prefix have no
// effect, and are logged.
//
// Anyone who may change an app can make a service of it, and claim hosts that the
// registry allows. The service ends when the app or its label goes.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Discoverer struct {
	// The base URLs of the members of the cluster, as for a backend. Default:
	// the shared ones of the app's `marathon`.
	URLs []string `json:"urls,omitempty"`

	// User and password, if the cluster asks for them.
	BasicAuth *BasicAuth `json:"basic_auth,omitempty"`

	// A file with a DC/OS authentication token, as for a backend.
	TokenFile string `json:"token_file,omitempty"`

	// A file with the PEM certificates that the members' certificates are
	// checked against, as for a backend.
	CAFile string `json:"ca_file,omitempty"`

	plan *plan // its app means nothing
}

// scheme is how the keys are written.
var scheme = discovery.Scheme{Prefix: "USHER_", Upper: true}

// CaddyModule returns the Caddy module information.
func (*Discoverer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.discovery.marathon",
		New: func() caddy.Module { return new(Discoverer) },
	}
}

// Provision resolves and checks the configuration. It reads the CA file, and
// calls no server.
func (d *Discoverer) Provision(ctx caddy.Context) error {
	if len(d.URLs) == 0 {
		return errors.New("marathon: discovery needs the url of its cluster: url <url...>, in its block or in the global option marathon")
	}
	b := d.backend("/any")
	if err := b.Provision(ctx); err != nil {
		return err
	}
	d.plan = b.plan
	return nil
}

// backend returns the description of a backend for an app of the cluster.
func (d *Discoverer) backend(app string) *Backend {
	return &Backend{App: app, URLs: d.URLs, BasicAuth: d.BasicAuth, TokenFile: d.TokenFile, CAFile: d.CAFile}
}

// MergeDefaults fills in what the app's shared options for Marathon say, as a
// backend does.
func (d *Discoverer) MergeDefaults(shared any) {
	b := d.backend("")
	b.MergeDefaults(shared)
	d.URLs, d.BasicAuth, d.TokenFile, d.CAFile = b.URLs, b.BasicAuth, b.TokenFile, b.CAFile
}

// Discover begins to watch. It does not wait for the cluster.
func (d *Discoverer) Discover(env scaler.DiscoverEnv) (scaler.Discovery, error) {
	if d.plan == nil {
		return nil, errors.New("the discovery of Marathon was begun before it was provisioned")
	}
	s := &search{discoverer: d, env: env, apps: make(map[string]*labelled)}
	s.watch = discovery.Start(env.Report, s.look, pollCalm, s.end)
	s.watch.Poke()
	return s.watch, nil
}

// Fingerprint identifies what is found, and how the cluster is asked. It is
// derived from secrets.
func (d *Discoverer) Fingerprint() string {
	d.plan.mu.Lock()
	key := d.plan.access.key()
	d.plan.mu.Unlock()
	// The descriptions of backends have what was written.
	text, err := json.Marshal([]any{key, d.backend("")})
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("marathon: encoding a discovery: %v", err))
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Redacted returns the configuration as it was written, without the password.
func (d *Discoverer) Redacted() any {
	shown := *d
	shown.plan = nil
	if d.BasicAuth != nil {
		shown.BasicAuth = &BasicAuth{User: d.BasicAuth.User, Password: "***"}
	}
	return &shown
}

// A search is a discovery that runs.
type search struct {
	discoverer *Discoverer
	env        scaler.DiscoverEnv
	watch      *discovery.Watch

	// These belong to look.
	cluster *cluster // nil until what it takes to ask it is there
	apps    map[string]*labelled

	mu    sync.Mutex
	again *time.Timer // the next look, if it is due before the usual one
	over  bool
}

// labelled is what is kept of an app with the label.
type labelled struct {
	labels  map[string]string
	version time.Time
	takenAt time.Time // when it was last in a list that was believed
	absent  time.Time // since when it is in no list
	since   time.Time // when the app was made
}

// labelledJSON is what is read of such an app.
type labelledJSON struct {
	ID      string            `json:"id"`
	Labels  map[string]string `json:"labels"`
	Version string            `json:"version"`
}

// look returns all apps that are to be services.
func (s *search) look(ctx context.Context) ([]scaler.Found, error) {
	if s.cluster == nil {
		a, missing := s.discoverer.plan.complete()
		if missing != nil {
			return nil, missing
		}
		s.cluster = acquire(a)
		s.cluster.attachSearch(s)
	}
	listed, err := s.list(ctx)
	if err != nil {
		return nil, asFailure(err)
	}
	if !s.cluster.streams() {
		s.lookIn(pollBlind)
	}
	s.take(listed)
	if err := s.findAges(ctx); err != nil {
		return nil, asFailure(err)
	}
	found := []scaler.Found{}
	for _, id := range slices.Sorted(maps.Keys(s.apps)) {
		if f, ok := s.found(id, s.apps[id]); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// list reads the apps with the label, without their tasks. It is not
// go-marathon's Applications, which fails for all apps if one of them has a
// secret in its environment.
func (s *search) list(ctx context.Context) ([]labelledJSON, error) {
	var answer struct {
		Apps *[]labelledJSON `json:"apps"`
	}
	err := s.cluster.ask(ctx, func(ctx context.Context, m *member) error {
		answer.Apps = nil
		query := url.Values{"label": {scheme.Enable() + "==true"}}.Encode()
		if err := m.call(ctx, http.MethodGet, "/v2/apps?"+query, nil, &answer); err != nil {
			return err
		}
		if answer.Apps == nil {
			return errors.New(m.base + ": the answer holds no list of apps")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return *answer.Apps, nil
}

// take takes in a list. It can be an old one: an app is gone when a second list
// does not have it either, and what is older than what is known is believed only
// after a while.
func (s *search) take(listed []labelledJSON) {
	now := time.Now()
	there := make(map[string]bool, len(listed))
	for _, j := range listed {
		if j.Labels[scheme.Enable()] != "true" {
			continue // a server that does not know the query
		}
		there[j.ID] = true
		known, version := s.apps[j.ID], when(j.Version)
		if known == nil {
			known = new(labelled)
			s.apps[j.ID] = known
		}
		known.absent = time.Time{}
		if version.Before(known.version) && now.Sub(known.takenAt) < staleFor {
			s.lookIn(staleFor)
			continue
		}
		known.labels, known.version, known.takenAt = j.Labels, version, now
	}
	for id, known := range s.apps {
		switch {
		case there[id]:
		case known.absent.IsZero():
			known.absent = now
			s.lookIn(vanishAfter)
		case now.Sub(known.absent) >= vanishAfter:
			delete(s.apps, id)
		default:
			s.lookIn(vanishAfter - now.Sub(known.absent))
		}
	}
}

// findAges finds out when apps were made that are new. Marathon keeps versions of
// an app, the first one among them unless it was changed very often.
func (s *search) findAges(ctx context.Context) error {
	for id, known := range s.apps {
		if !known.since.IsZero() {
			continue
		}
		if _, err := checkApp(id); err != nil {
			known.since = known.version
			continue
		}
		var answer struct {
			Versions []string `json:"versions"`
		}
		err := s.cluster.ask(ctx, func(ctx context.Context, m *member) error {
			answer.Versions = nil
			return m.call(ctx, http.MethodGet, "/v2/apps"+id+"/versions", nil, &answer)
		})
		if status, ok := errors.AsType[*statusError](err); err != nil && (!ok || status.status >= 500) {
			return err
		}
		known.since = known.version
		for _, text := range answer.Versions {
			if at := when(text); !at.IsZero() && at.Before(known.since) {
				known.since = at
			}
		}
	}
	return nil
}

// portName is what Marathon allows as the name of a port.
var portName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// found describes an app.
func (s *search) found(id string, known *labelled) (f scaler.Found, ok bool) {
	port, ok := scheme.Read(&f, known.labels)
	if !ok {
		return f, false
	}
	f.Object, f.Name, f.Since = "app "+id, discovery.Name(strings.TrimPrefix(id, "/")), known.since
	b := s.discoverer.backend(id)
	if checked, err := checkApp(id); err != nil {
		f.Problem = err.Error()
	} else if checked != id {
		f.Problem = "its id is not absolute"
	}
	if port != "" && f.Problem == "" {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			b.PortIndex = int(n)
		} else if portName.MatchString(port) {
			b.PortName = port
		} else {
			f.Problem = fmt.Sprintf("%s is %q: give the name of one of the app's ports, or its place among them, counted from 0", scheme.Key(discovery.KeyPort), port)
		}
	}
	if f.Problem == "" {
		f.Backend = caddyconfig.JSONModuleObject(b, "type", "marathon", nil)
	}
	return f, true
}

// lookIn has the watch look after a pause, if nothing makes it look earlier.
func (s *search) lookIn(pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	if s.again != nil {
		s.again.Stop()
	}
	s.again = time.AfterFunc(pause, s.watch.Poke)
}

// end gives the cluster back.
func (s *search) end() {
	s.mu.Lock()
	s.over = true
	if s.again != nil {
		s.again.Stop()
	}
	s.mu.Unlock()
	if s.cluster != nil {
		s.cluster.detachSearch(s)
		s.cluster.release()
	}
}

// attachSearch has s told when apps may have come, changed or gone.
func (c *cluster) attachSearch(s *search) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.searches = append(c.searches, s)
}

func (c *cluster) detachSearch(s *search) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.searches = slices.DeleteFunc(c.searches, func(o *search) bool { return o == s })
}

// pokeSearches has all discoveries look.
func (c *cluster) pokeSearches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.searches {
		s.watch.Poke()
	}
}

// searchLogger returns the logger of a discovery, or nil if there is none. The
// lock is held.
func (c *cluster) searchLogger() *slog.Logger {
	for _, s := range c.searches {
		return s.env.Logger()
	}
	return nil
}

// changesApps reports whether an event tells of a deployment, which is how apps
// come, change and go. What is not understood may be one.
func changesApps(data string) bool {
	var e struct {
		Type string `json:"eventType"`
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return true
	}
	return strings.HasPrefix(e.Type, "deployment_") || e.Type == "app_terminated_event"
}

// Interface guards.
var (
	_ caddy.Module      = (*Discoverer)(nil)
	_ caddy.Provisioner = (*Discoverer)(nil)
	_ scaler.Discoverer = (*Discoverer)(nil)
)
