//go:build linux

package docker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	backend "github.com/caddy-usher/usher/backends/docker"
	"github.com/caddy-usher/usher/scaler/backendtest"
)

// Every form keeps the contract, on Docker and on Podman.
func TestTheContractOfBackendsIsKept(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			t.Run("compose", func(t *testing.T) {
				backendtest.Run(t, func(t *testing.T) backendtest.Subject { return composeSubject(t, s) })
			})
			t.Run("image", func(t *testing.T) {
				backendtest.Run(t, func(t *testing.T) backendtest.Subject { return imageSubject(t, s) })
			})
			if s.podman {
				return // the rest differs in nothing that Podman sees
			}
			t.Run("copies", func(t *testing.T) {
				backendtest.Run(t, func(t *testing.T) backendtest.Subject { return copiesSubject(t, s) })
			})
			t.Run("pause", func(t *testing.T) {
				backendtest.Run(t, func(t *testing.T) backendtest.Subject { return pauseSubject(t, s) })
			})
		})
	}
}

// provisioned returns a backend that is ready to be opened.
func provisioned(t *testing.T, b backend.Backend) *backend.Backend {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	if err := b.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	return &b
}

// rig is an engine behind a wire, with what a subject has in common.
type rig struct {
	world
	wire *wire
}

func newRig(t *testing.T, s *shared) *rig {
	t.Helper()
	r := &rig{world: world{t: t, e: s.get(t)}}
	r.wire = newWire(t, r.e.Socket())
	return r
}

// running counts the containers that run and are not paused.
func (r *rig) running() int {
	all, err := r.e.Containers(r.t.Context())
	if err != nil {
		return -1
	}
	n := 0
	for _, c := range all {
		if c.State == container.StateRunning {
			n++
		}
	}
	return n
}

// kill ends the container of an instance.
func (r *rig) kill(id string) {
	name, _, _ := strings.Cut(id, "-")
	if _, err := r.e.Client.ContainerKill(r.t.Context(), r.fullID(name), client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		r.t.Errorf("killing %s: %v", id, err)
	}
}

// fullID returns the id of the container of an instance.
func (r *rig) fullID(name string) string {
	all, err := r.e.Containers(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range all {
		if strings.HasPrefix(c.ID, name) || len(c.Names) > 0 && strings.HasSuffix(c.Names[0], "-"+name) {
			return c.ID
		}
	}
	return name
}

func (r *rig) subject(b, same, other, broken backend.Backend) backendtest.Subject {
	for _, x := range []*backend.Backend{&b, &same, &other, &broken} {
		x.Host = r.wire.host()
	}
	return backendtest.Subject{
		Backend: provisioned(r.t, b), Same: provisioned(r.t, same), Other: provisioned(r.t, other), Broken: provisioned(r.t, broken),
		Secrets: []string{"hunter2"}, Running: r.running, Kill: r.kill,
		Cut: func() func() {
			r.wire.cut()
			return r.wire.restore
		},
		Hang: func() func() {
			r.wire.stop()
			return r.wire.release
		},
		Patience: 30 * time.Second,
	}
}

func composeSubject(t *testing.T, s *shared) backendtest.Subject {
	r := newRig(t, s)
	for n := range 3 {
		r.create(spec{name: fmt.Sprintf("shop-web-%d", n+1), labels: composeLabels("shop", "web", n+1)})
	}
	b := backend.Backend{Compose: "shop/web"}
	return r.subject(b, b, backend.Backend{Compose: "shop/api"}, backend.Backend{Compose: "shop/missing"})
}

func pauseSubject(t *testing.T, s *shared) backendtest.Subject {
	r := newRig(t, s)
	for n := range 3 {
		r.create(spec{name: fmt.Sprintf("web%d", n+1), labels: map[string]string{"tier": "web"}})
	}
	r.create(spec{name: "broken", args: []string{"-exit-code", "3"}})
	b := backend.Backend{Label: "tier=web", Idle: "pause"}
	return r.subject(b, b, backend.Backend{Label: "tier=api", Idle: "pause"}, backend.Backend{Container: "broken"})
}

func copiesSubject(t *testing.T, s *shared) backendtest.Subject {
	r := newRig(t, s)
	r.create(spec{name: "web"})
	b := backend.Backend{Container: "web", Copies: true}
	return r.subject(b, b, backend.Backend{Container: "web", Copies: true, Port: 81}, backend.Backend{Container: "missing", Copies: true})
}

func imageSubject(t *testing.T, s *shared) backendtest.Subject {
	r := newRig(t, s)
	b := backend.Backend{
		Image: image, Env: map[string]string{"TOKEN": "hunter2"}, Pull: "missing",
		RegistryAuth: &backend.RegistryAuth{User: "usher", Password: "hunter2"},
	}
	other := b
	other.Command = []string{"-delay", "1s"}
	broken := b
	broken.Image = "usher-test/missing:1"
	broken.Pull, broken.RegistryAuth = "never", nil
	return r.subject(b, b, other, broken)
}
