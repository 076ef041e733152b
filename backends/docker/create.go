package docker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// The labels of what Usher makes.
const (
	labelPrefix   = "usher."
	labelService  = labelPrefix + "service"
	labelRevision = labelPrefix + "revision"  // the description, as a hash
	labelCaddy    = labelPrefix + "caddy"     // the installation of Caddy
	labelRun      = labelPrefix + "run"       // the process and the runner
	labelTag      = labelPrefix + "container" // the end of its name
	labelCopyOf   = labelPrefix + "copy_of"   // the id of the container that it is a copy of
)

// tags counts the containers that this process makes.
var tags atomic.Uint64

// another returns a container that is to be made, or nil if none can be. The
// lock is held.
func (r *runner) another() *member {
	if !r.owned {
		return nil
	}
	m := &member{made: true, tag: processToken + strconv.FormatUint(tags.Add(1), 36)}
	if r.plan.form != formImage {
		template := r.template()
		if template == nil {
			return nil
		}
		m.of = template.id
	}
	r.members = append(r.members, m)
	return m
}

// template returns the container that copies are made of. The lock is held.
func (r *runner) template() *member {
	var first *member
	for _, m := range r.members {
		if !m.made && m.view != nil && (first == nil || m.view.name < first.view.name) {
			first = m
		}
	}
	return first
}

// ahead makes a container before it is needed, so that a start is nothing but a
// start. The lock is held.
func (r *runner) ahead() {
	if r.closed || !r.known || r.plan.form != formImage || r.engine.outage != nil || r.retry != nil {
		return
	}
	for _, m := range r.members {
		if m.instance == nil && m.leaving == nil && m.dying == nil && !m.discard && !r.spent(m) {
			return
		}
	}
	r.work(r.another())
}

// dropCopies stops and removes copies of which there is no original any more.
// The lock is held.
func (r *runner) dropCopies() {
	for _, m := range r.members {
		if !m.made || m.discard {
			continue
		}
		m.discard = true
		if i := m.instance; i != nil {
			m.instance = nil
			m.leave(i)
		}
		r.work(m)
	}
}

// make makes the container of m. The lock is held.
func (r *runner) make(m *member, ctx context.Context) {
	var template *view
	if m.of != "" {
		if t := r.member(m.of); t != nil {
			template = t.view
		}
		if template == nil {
			m.discard = true
			return
		}
	}
	var failure *scaler.Failure
	r.call(m, ctx, func(ctx context.Context, c *client.Client) error {
		id, image, f := r.create(ctx, c, m, template)
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		if failure = f; f != nil {
			return f
		}
		m.id, m.image = id, image
		return nil
	}, func(err error) {
		if err == nil {
			r.spoiled, r.failures = nil, 0
			r.ahead()
			r.checkImage() // another may have come while it was made
			return
		}
		if failure == nil {
			failure = callFailure(err)
		}
		r.unmade(m, failure)
	})
}

// unmade deals with a container that could not be made. The lock is held.
func (r *runner) unmade(m *member, f *scaler.Failure) {
	r.members = slices.DeleteFunc(r.members, func(o *member) bool { return o == m })
	for _, i := range []*instance{m.instance, m.leaving} {
		if i != nil {
			r.end(i, f)
		}
	}
	m.instance, m.leaving, m.discard = nil, nil, true
	if r.closed || r.ctx.Err() != nil {
		return
	}
	if r.plan.form == formImage {
		r.failed(f)
	}
	r.report()
}

// create makes a container, and returns its id and that of its image.
func (r *runner) create(ctx context.Context, c *client.Client, m *member, template *view) (id, image string, failure *scaler.Failure) {
	r.engine.mu.Lock()
	p := r.plan
	publish := r.engine.publishes(p)
	r.engine.mu.Unlock()
	if template != nil {
		return r.copy(ctx, c, p, m, template)
	}
	if p.pull == pullAlways {
		if f := r.pull(ctx, c, m); f != nil {
			return "", "", f
		}
	}
	// Which image it is, is needed to find out that there is a newer one. If that
	// comes in between, a container is made anew that need not be.
	if i, err := c.ImageInspect(ctx, p.name); err == nil {
		image = i.ID
	}
	opts := p.definition(publish)
	opts.Config.Labels = r.labels(p, p.labels, m)
	opts.Name = r.containerName(m)
	res, err := c.ContainerCreate(ctx, opts)
	if err != nil && p.pull == pullMissing && startFailure(err, "").Reason == scaler.ReasonImage {
		if f := r.pull(ctx, c, m); f != nil {
			return "", "", f
		}
		if i, err := c.ImageInspect(ctx, p.name); err == nil {
			image = i.ID
		}
		res, err = c.ContainerCreate(ctx, opts)
	}
	if err != nil {
		return "", "", startFailure(err, "making a container of "+p.name)
	}
	return res.ID, image, nil
}

// labels returns the labels of a container that Usher makes.
func (r *runner) labels(p *plan, more map[string]string, m *member) map[string]string {
	all := maps.Clone(more)
	if all == nil {
		all = make(map[string]string)
	}
	all[labelService], all[labelRevision] = r.env.Service, revisionOf(p)
	all[labelCaddy], all[labelRun], all[labelTag] = r.identity().own, r.token, m.tag
	if m.of != "" {
		all[labelCopyOf] = m.of
	}
	return all
}

// containerName is the name of a container that Usher makes.
func (r *runner) containerName(m *member) string {
	return "usher-" + r.env.Service + "-" + m.tag
}

// publishes says whether containers are reached at ports that the engine
// publishes. The lock is held.
func (e *engine) publishes(p *plan) bool {
	self := e.facts.self
	switch p.address {
	case addressPublished:
		return true
	case addressContainer:
		return false
	}
	return p.network == "" && self == nil && (!e.access.local() || e.facts.far)
}

// definition is what a container of an image is made of.
func (p *plan) definition(publish bool) client.ContainerCreateOptions {
	cfg := &container.Config{Image: p.name, Cmd: p.command, Env: p.env, User: p.user}
	host := &container.HostConfig{Binds: p.volumes, Resources: container.Resources{Memory: p.memory, NanoCPUs: p.nanoCPUs}}
	if p.network != "" {
		host.NetworkMode = container.NetworkMode(p.network)
	}
	if p.port != 0 {
		port, _ := network.PortFrom(uint16(p.port), network.TCP)
		cfg.ExposedPorts = network.PortSet{port: {}}
		if publish {
			host.PortBindings = network.PortMap{port: {p.binding()}}
		}
	} else if publish {
		host.PublishAllPorts = true
	}
	return client.ContainerCreateOptions{Config: cfg, HostConfig: host}
}

// binding publishes a port where Caddy reaches it, at a number that the engine
// chooses.
func (p *plan) binding() network.PortBinding {
	if p.access.local() {
		return network.PortBinding{HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return network.PortBinding{}
}

// copy makes a copy of a container. Its labels are left out: other programs
// would take the copy for the original.
func (r *runner) copy(ctx context.Context, c *client.Client, p *plan, m *member, v *view) (id, image string, failure *scaler.Failure) {
	if v.raw == nil || v.raw.Config == nil || v.raw.HostConfig == nil {
		return "", "", &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the container engine does not say what the container is made of"}
	}
	cfg, host := *v.raw.Config, *v.raw.HostConfig
	for port, bindings := range host.PortBindings {
		for _, b := range bindings {
			if b.HostPort != "" && b.HostPort != "0" {
				return "", "", &scaler.Failure{
					Reason: scaler.ReasonConflict, ForGood: true, Short: "the container cannot be copied",
					Detail: fmt.Sprintf("container %s publishes its port %s at the fixed port %s, which only one container can have: leave the publishing to Caddy, or set `copies off`", v.name, port, b.HostPort),
				}
			}
		}
	}
	cfg.Hostname, cfg.Image = "", v.image
	cfg.Labels = r.labels(p, nil, m)
	host.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyDisabled}
	host.AutoRemove, host.ContainerIDFile = false, ""
	opts := client.ContainerCreateOptions{Config: &cfg, HostConfig: &host, Name: r.containerName(m)}
	res, err := c.ContainerCreate(ctx, opts)
	if err != nil {
		return "", "", startFailure(err, "copying container "+v.name)
	}
	for _, name := range slices.Sorted(maps.Keys(v.networks)) {
		if ep := v.networks[name]; name != v.networkMode && ep != nil && !builtin(v.networkMode) && ep.NetworkID != v.networkMode {
			_, err := c.NetworkConnect(ctx, name, client.NetworkConnectOptions{Container: res.ID})
			if err != nil {
				_ = r.remove(res.ID)(ctx, c) // what is said is why it cannot be used
				return "", "", startFailure(err, "copying container "+v.name)
			}
		}
	}
	return res.ID, "", nil
}

// builtin says whether a container with this network has no other.
func builtin(mode string) bool {
	m := container.NetworkMode(mode)
	return m.IsHost() || m.IsNone() || m.IsContainer()
}

// pull pulls the image. The instance that waits for it says so.
func (r *runner) pull(ctx context.Context, c *client.Client, m *member) *scaler.Failure {
	r.engine.mu.Lock()
	p := r.plan
	if i := m.instance; i != nil {
		i.delay = pulling
		r.report()
	}
	r.engine.mu.Unlock()
	r.env.Logger().Info("pulling the image", slog.String("image", p.name))
	var opts client.ImagePullOptions
	if p.registry != nil {
		auth, err := authconfig.Encode(registry.AuthConfig{Username: p.registry.User, Password: p.registry.Password})
		if err != nil {
			return callFailure(err)
		}
		opts.RegistryAuth = auth
	}
	res, err := c.ImagePull(ctx, p.name, opts)
	if err == nil {
		err = res.Wait(ctx)
		_ = res.Close() // it was read to its end
	}
	if err != nil {
		return pullFailure(p.name, err)
	}
	return nil
}

// pulling is what a start waits for whose image is being pulled.
var pulling = &scaler.Failure{Reason: scaler.ReasonImage, Short: "the image is being pulled"}

// checkImage looks, in the background, whether the image is another one than the
// container was made of that waits for its start. It also tries again what a
// missing image kept from being made. The lock is held.
func (r *runner) checkImage() {
	if r.closed || r.plan.form != formImage || !r.known {
		return
	}
	if r.spoiled != nil && r.spoiled.Reason == scaler.ReasonImage && r.retry != nil && r.plan.pull == pullNever {
		if r.retry.Stop() {
			r.retry = nil
			r.ahead()
		}
		return
	}
	c, name := clientOf(r.engine), r.plan.name
	if c == nil || !slices.ContainsFunc(r.members, (*member).waits) {
		return
	}
	r.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
		defer cancel()
		now, err := c.ImageInspect(ctx, name)
		if err != nil {
			return
		}
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		if r.closed {
			return
		}
		for _, m := range slices.Clone(r.members) {
			if m.waits() && m.image != now.ID {
				m.discard = true
				r.work(m)
			}
		}
		r.ahead()
	})
}
