package docker

import (
	"encoding/json"
	"fmt"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(new(Backend))
}

// Backend runs the instances of a service as containers of a Docker Engine (API
// 1.40 and newer) or of Podman. Exactly one of `container`, `compose`, `label`
// and `image` says which.
//
// Containers that exist are started and stopped, and otherwise left alone: they
// stay as they are when the service is removed and when Caddy exits. Of an
// `image`, Usher makes the containers and removes them.
//
// `{env.*}` and `{file.*}` are resolved when the configuration is loaded.
type Backend struct {
	// The name or the id of a container that exists. The service has one
	// instance at most, unless `copies` is on.
	Container string `json:"container,omitempty"`

	// A service of a Compose project, as `project/service`: all containers that
	// Compose has made for it, stopped or not.
	Compose string `json:"compose,omitempty"`

	// All containers with this label: `key`, or `key=value`.
	Label string `json:"label,omitempty"`

	// The image of which Usher makes the containers.
	Image string `json:"image,omitempty"`

	// The command in place of the image's. Only with `image`.
	Command []string `json:"command,omitempty"`

	// Where the engine listens: `unix://<path>`, `tcp://<host>:<port>` or
	// `npipe://<path>`. Default: `unix:///var/run/docker.sock`.
	Host string `json:"host,omitempty"`

	// The PEM files for a `tcp` host that speaks TLS: the authority that signs
	// its certificate, and the client's certificate with its key.
	CAFile   string `json:"ca_file,omitempty"`
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`

	// The port on which the container listens. Default: the only TCP port that
	// the image exposes.
	Port int `json:"port,omitempty"`

	// The network whose address is taken; for an `image`, the network that the
	// containers join. Default: one that Caddy shares with the container.
	Network string `json:"network,omitempty"`

	// How containers are reached. `container`: at their own address.
	// `published`: at the port that the engine publishes on its host. `auto`:
	// at their own address on a network that Caddy is on, if Caddy is a
	// container of the same engine; at their own address, if the engine is on
	// this Linux machine and not rootless; otherwise at the published port.
	// Default: `auto`.
	Address string `json:"address,omitempty"`

	// What becomes of an instance that is not needed. `stop`: it is stopped.
	// `pause`: it is frozen, keeps its memory, and is back within milliseconds.
	// Default: `stop`.
	Idle string `json:"idle,omitempty"`

	// After how long a paused container is stopped. Default: never.
	PauseTimeout caddy.Duration `json:"pause_timeout,omitempty"`

	// Whether Usher makes copies of a container that exists when more instances
	// are wanted than containers exist. The service's containers, copies or
	// not, then stop with Caddy. Default: false.
	Copies bool `json:"copies,omitempty"`

	// Variables of the environment. Only with `image`, like all that follows.
	Env map[string]string `json:"env,omitempty"`

	// Volumes and bind mounts, as `docker run --volume` takes them.
	Volumes []string `json:"volumes,omitempty"`

	// The limit of memory, such as `256m` or `1g`. Default: none.
	Memory string `json:"memory,omitempty"`

	// The limit of CPUs, such as 0.5. Default: none.
	CPUs float64 `json:"cpus,omitempty"`

	// The user, as a name or number, with a group if you like: `1000:1000`.
	User string `json:"user,omitempty"`

	// More labels. Those that begin with `usher.` are Usher's.
	Labels map[string]string `json:"labels,omitempty"`

	// When the image is pulled: `missing`, `always` (before each container is
	// made) or `never`. Default: `missing`.
	Pull string `json:"pull,omitempty"`

	// The credentials for the image's registry, if it asks for them.
	RegistryAuth *RegistryAuth `json:"registry_auth,omitempty"`

	plan *plan
}

// RegistryAuth is a user of a registry with a password.
type RegistryAuth struct {
	// The name of the user.
	User string `json:"user,omitempty"`

	// The password or token.
	Password string `json:"password,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Backend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "usher.backends.docker",
		New: func() caddy.Module { return new(Backend) },
	}
}

// Provision resolves and checks the configuration. It calls no engine, and
// changes nothing.
func (b *Backend) Provision(caddy.Context) error {
	p, err := b.resolve(caddy.NewReplacer())
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	b.plan = p
	return nil
}

// Open makes the thing that runs. It begins to connect, and does not wait for
// the engine.
func (b *Backend) Open(env scaler.Env) (scaler.Scaler, error) {
	if b.plan == nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonPlatform, ForGood: true, Short: "backend not provisioned",
			Detail: "the docker backend of " + env.Service + " was opened before it was provisioned",
		}
	}
	if f := b.Check(); f != nil {
		return nil, f
	}
	return open(b.plan, env), nil
}

// Check tells whether the files that the configuration names can be read. It
// does not call the engine: an engine can come later.
func (b *Backend) Check() *scaler.Failure { return b.plan.access.check() }

// Fingerprint identifies what shapes an instance and how it is reached. How
// idle instances rest, and how a registry is asked, is not part of it.
func (b *Backend) Fingerprint() string { return b.plan.fingerprint() }

// Redacted returns the configuration as it was written, without the password
// and without the values of the environment.
func (b *Backend) Redacted() any {
	shown := *b
	shown.plan = nil
	if b.RegistryAuth != nil {
		shown.RegistryAuth = &RegistryAuth{User: b.RegistryAuth.User, Password: "***"}
	}
	if b.Env != nil {
		shown.Env = make(map[string]string, len(b.Env))
		for name := range b.Env {
			shown.Env[name] = "***"
		}
	}
	return &shown
}

// fingerprint is that of Fingerprint. It is derived from secrets.
func (p *plan) fingerprint() string {
	text, err := json.Marshal([]any{
		p.access.key(), p.form, p.name, p.labelValue, p.hasValue, p.port, p.network, p.address, p.copies,
		p.command, p.env, p.volumes, p.memory, p.nanoCPUs, p.user, p.labels,
	})
	if err != nil {
		// Strings and numbers always encode.
		panic(fmt.Sprintf("docker: encoding a plan: %v", err))
	}
	return string(text)
}

// Interface guards.
var (
	_ caddy.Module      = (*Backend)(nil)
	_ caddy.Provisioner = (*Backend)(nil)
	_ scaler.Backend    = (*Backend)(nil)
	_ scaler.Checker    = (*Backend)(nil)
)
