//go:build linux

package docker

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	backend "github.com/caddy-usher/usher/backends/docker"
	"github.com/caddy-usher/usher/scaler/discoverytest"
	"github.com/caddy-usher/usher/test/harness"
)

// containers is a discoverytest.Platform: the containers of an engine behind a
// wire. Labels do not change, so a container with other labels is another one.
type containers struct {
	*rig
	ids map[string]string
}

func (c *containers) Put(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	c.Remove(t, name)
	all := make(map[string]string)
	for key, value := range labels {
		all["usher."+key] = value
	}
	c.ids[name] = c.create(spec{name: name, labels: all})
}

func (c *containers) Remove(t *testing.T, name string) {
	t.Helper()
	if id := c.ids[name]; id != "" {
		if _, err := c.e.Client.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		delete(c.ids, name)
	}
}

func (c *containers) Away(*testing.T) { c.wire.cut() }
func (c *containers) Back(*testing.T) { c.wire.restore() }

// means returns the name of the container that a description means.
func (c *containers) means(description json.RawMessage) (string, error) {
	var typed map[string]json.RawMessage
	if err := json.Unmarshal(description, &typed); err != nil {
		return "", err
	}
	delete(typed, "type")
	text, err := json.Marshal(typed)
	if err != nil {
		return "", err
	}
	b := new(backend.Backend)
	if err := caddy.StrictUnmarshalJSON(text, b); err != nil {
		return "", err
	}
	if err := b.Provision(caddy.Context{}); err != nil {
		return "", err
	}
	if b.Host != c.wire.host() {
		return "", fmt.Errorf("it is on %s", b.Host)
	}
	for name, id := range c.ids {
		if id == b.Container {
			return name, nil
		}
	}
	return "container that is gone", nil
}

// Both engines tell of what comes and goes.
func TestDiscoveryConforms(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			discoverytest.Run(t, func(t *testing.T) discoverytest.Setup {
				c := &containers{rig: newRig(t, s), ids: make(map[string]string)}
				d := &backend.Discoverer{Host: c.wire.host()}
				if err := d.Provision(caddy.Context{}); err != nil {
					t.Fatal(err)
				}
				return discoverytest.Setup{
					Discoverer: d, Platform: c, Type: "docker", Means: c.means,
					Key: func(key string) string { return "usher." + key },
				}
			})
		})
	}
}

// A container with a label is a service that is reached by its host. It is
// started when a request comes, and no service any more when it is removed.
func TestALabelMakesAService(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			w := newWorld(t, s)
			w.Start(harness.Config{
				Usher: "docker {\n\thost " + w.e.Host() + "\n}\nregistry {\n\tdiscover docker\n}",
				Site:  "usher {http.request.host}",
			})
			ask := func(host string) harness.Response { return w.Do(harness.Request{Path: "/", Host: host}) }
			unknown := func(host string) {
				t.Helper()
				w.await(host+" is the host of no service", func() bool { return ask(host).UsherError() == "unknown_service" })
			}
			unknown("shop.example.com")
			other := w.create(spec{name: "other"})
			id := w.create(spec{name: "shop", labels: map[string]string{
				"usher.enable": "true", "usher.hosts": "shop.example.com", "usher.port": "8080", "usher.ready": "http /healthz",
				"usher.container": other, "usher.image": "evil:1", "usher.command": "sh",
			}})
			w.await("the host is served", func() bool { return ask("shop.example.com").Status == http.StatusOK })
			if w.state(id) != container.StateRunning || w.state(other) == container.StateRunning {
				t.Errorf("the container is %s, and another one %s", w.state(id), w.state(other))
			}
			if _, err := w.e.Client.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			unknown("shop.example.com")
		})
	}
}
