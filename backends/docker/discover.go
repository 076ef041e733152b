package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discovery"
)

func init() {
	caddy.RegisterModule(new(Discoverer))
}

// Discoverer makes services of the containers of an engine that have the label
// `usher.enable=true`, stopped ones included. The service's backend is that very
// container. Further labels with the prefix `usher.` say more: `name` (default:
// the container's), `hosts`, `instances`, `concurrency`, `idle-timeout`,
// `start-timeout`, `drain-timeout`, `ready`, `port`, `scale`. Others have no
// effect, and are logged.
//
// Anyone who may make containers on the engine can make a service of one, and
// claim hosts that the registry allows. The service ends when the container is
// removed.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Discoverer struct {
	// Where the engine listens. Default: the shared host of the app's `docker`,
	// else as for a backend.
	Host string `json:"host,omitempty"`

	// The PEM files for a `tcp` host that speaks TLS, as for a backend.
	CAFile   string `json:"ca_file,omitempty"`
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`

	access *access // of the engine; nil before Provision
}

// scheme is how the keys are written. Usher's own labels are on the containers
// that it makes.
var scheme = discovery.Scheme{
	Prefix: labelPrefix,
	Own:    []string{labelService, labelRevision, labelCaddy, labelRun, labelTag, labelCopyOf},
}

// CaddyModule returns the Caddy module information.
func (*Discoverer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.discovery.docker",
		New: func() caddy.Module { return new(Discoverer) },
	}
}

// Provision resolves and checks the configuration. It calls no engine.
func (d *Discoverer) Provision(caddy.Context) error {
	a, err := d.resolve(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	d.access = a
	return nil
}

// resolve returns how the engine is reached. Without a replacer placeholders
// stay.
func (d *Discoverer) resolve(with *caddy.Replacer) (*access, error) {
	r := &resolver{replacer: with}
	a := &access{
		Host: r.text("host", d.Host), CAFile: r.text("ca_file", d.CAFile),
		CertFile: r.text("cert_file", d.CertFile), KeyFile: r.text("key_file", d.KeyFile),
	}
	if r.err != nil {
		return nil, r.err
	}
	return a, a.complete()
}

// MergeDefaults fills in what the app's shared options for Docker say, as a
// backend does.
func (d *Discoverer) MergeDefaults(shared any) {
	b := d.backend()
	b.MergeDefaults(shared)
	d.Host, d.CAFile, d.CertFile, d.KeyFile = b.Host, b.CAFile, b.CertFile, b.KeyFile
}

// backend returns a description that is reached as the discovery says.
func (d *Discoverer) backend() *Backend {
	return &Backend{Host: d.Host, CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile}
}

// Discover begins to watch. It does not wait for the engine.
func (d *Discoverer) Discover(env scaler.DiscoverEnv) (scaler.Discovery, error) {
	if d.access == nil {
		return nil, errors.New("the discovery of Docker was begun before it was provisioned")
	}
	s := &search{discoverer: d, engine: acquire(*d.access)}
	s.watch = discovery.Start(env.Report, s.look, resync, func() {
		s.engine.forget(s)
		s.engine.release()
	})
	s.engine.tellChanges(s)
	return s.watch, nil
}

// Fingerprint identifies what is found, and how the engine is asked.
func (d *Discoverer) Fingerprint() string {
	// The descriptions of backends have what was written.
	text, err := json.Marshal([]any{d.access.key(), d.backend()})
	if err != nil {
		// Strings always encode.
		panic(fmt.Sprintf("docker: encoding a discovery: %v", err))
	}
	return string(text)
}

// Redacted returns the configuration as it was written. It holds no secrets:
// those are in the files that it names.
func (d *Discoverer) Redacted() any {
	shown := *d
	shown.access = nil
	return &shown
}

// A search is a discovery that runs.
type search struct {
	discoverer *Discoverer
	engine     *engine
	watch      *discovery.Watch
}

// look returns all containers that are to be services.
func (s *search) look(ctx context.Context) ([]scaler.Found, error) {
	e := s.engine
	e.mu.Lock()
	known, outage := e.known, e.outage
	e.mu.Unlock()
	switch {
	case outage != nil:
		return nil, outage
	case !known:
		return nil, discovery.ErrUnknown
	}
	c, err := e.api()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := c.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", scheme.Enable()+"=true"),
	})
	if err != nil {
		return nil, e.outageFailure(err)
	}
	found := []scaler.Found{}
	for i := range res.Items {
		if f, ok := s.found(&res.Items[i]); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// found describes a container, if it is to be a service.
func (s *search) found(item *container.Summary) (f scaler.Found, ok bool) {
	switch {
	case item.Labels[labelCaddy] != "":
		return f, false // Usher has made it of an image with the label
	case strings.EqualFold(item.Labels[composeOneOff], "true"):
		return f, false // `docker compose run` copies the labels
	case item.State == container.StateRemoving, item.State == container.StateDead:
		return f, false
	}
	name := short(item.ID)
	if len(item.Names) > 0 {
		name = strings.TrimPrefix(item.Names[0], "/")
	}
	port, ok := scheme.Read(&f, item.Labels)
	if !ok {
		return f, false
	}
	f.Object, f.Name, f.Since = "container "+name, discovery.Name(name), time.Unix(item.Created, 0)
	b := s.discoverer.backend()
	// Its id and not its name, which another container can have a moment later.
	b.Container = item.ID
	if port != "" && f.Problem == "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if b.Port = int(n); err != nil || n == 0 {
			f.Problem = fmt.Sprintf("%s is %q: give the number of the port on which the container listens, from 1 to 65535", scheme.Key(discovery.KeyPort), port)
		}
	}
	if f.Problem == "" {
		f.Backend = caddyconfig.JSONModuleObject(b, "type", "docker", nil)
	}
	return f, true
}

// tellChanges has s told when a container may have come or gone, and of what is
// known now.
func (e *engine) tellChanges(s *search) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.searches = append(e.searches, s)
	s.watch.Poke()
}

// forget takes s off the engine.
func (e *engine) forget(s *search) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.searches = slices.DeleteFunc(e.searches, func(o *search) bool { return o == s })
}

// pokeSearches has all discoveries look. The lock is held.
func (e *engine) pokeSearches() {
	for _, s := range e.searches {
		s.watch.Poke()
	}
}

// Interface guards.
var (
	_ caddy.Module      = (*Discoverer)(nil)
	_ caddy.Provisioner = (*Discoverer)(nil)
	_ scaler.Discoverer = (*Discoverer)(nil)
)
