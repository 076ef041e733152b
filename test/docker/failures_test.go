//go:build linux

package docker

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// A client that waits learns why the container cannot be started.
func TestReasonsOfFailures(t *testing.T) {
	type failure struct {
		name, backend, options, want, detail string
		timeout                              string // start_timeout
		soon                                 bool   // at the first attempt
		docker                               bool   // Podman does it, or says it, in another way
		prepare                              func(w *world)
	}
	existing := func(s spec) func(w *world) {
		return func(w *world) {
			s.name = "web"
			w.create(s)
		}
	}
	for _, f := range []failure{
		{name: "no container", backend: "missing", want: "the container does not exist", detail: "docker create", soon: true},
		{name: "no image", backend: "image usher-test/missing:1", options: "pull never", want: "the image does not exist", soon: true},
		{name: "no command", backend: "web", want: "127", detail: "no-such-command", soon: true, prepare: existing(spec{
			config: func(c *container.Config, _ *container.HostConfig) { c.Entrypoint = []string{"no-such-command"} },
		})},
		{name: "command that is no program", backend: "web", want: "126", soon: true, prepare: existing(spec{
			config: func(c *container.Config, _ *container.HostConfig) { c.Entrypoint = []string{"/tmp"} },
		})},
		{name: "no user", backend: "image " + image, options: "user nobody-of-that-name", want: "user does not exist", soon: true},
		{name: "no network", backend: "image " + image, options: "network no-such-network", want: "network of the container does not exist", soon: true},
		{name: "exit status", backend: "web", want: "exit status 3", detail: "the last words", prepare: existing(spec{
			args: []string{"-print", "the last words", "-exit-code", "3"},
		})},
		{name: "port taken", backend: "web", want: "port of the container is taken", docker: true, prepare: func(w *world) {
			publish := func(_ *container.Config, h *container.HostConfig) {
				h.PortBindings = network.PortMap{network.MustParsePort("8080/tcp"): {{HostPort: portOf(w.SpareAddr)}}}
			}
			other := w.create(spec{name: "other", config: publish})
			if _, err := w.e.Client.ContainerStart(w.t.Context(), other, client.ContainerStartOptions{}); err != nil {
				w.t.Fatal(err)
			}
			w.create(spec{name: "web", config: publish})
		}},
		{name: "two ports", backend: "web", want: "port is not known", detail: "8080, 9090", soon: true, prepare: existing(spec{
			config: func(c *container.Config, _ *container.HostConfig) {
				c.ExposedPorts = network.PortSet{network.MustParsePort("9090/tcp"): {}}
			},
		})},
		{name: "port that is not listened on", backend: "web", options: "port 81", timeout: "3s", want: "nothing listens on port 81", prepare: existing(spec{})},
		{name: "published port that is not listened on", backend: "web", options: "address published", timeout: "3s", want: "nothing listens behind the published port", docker: true, prepare: existing(spec{
			args: []string{"-never-listen"}, publish: true,
		})},
		{name: "no published port", backend: "web", options: "address published", want: "no route to the container", detail: "does not publish port 8080", soon: true, prepare: existing(spec{})},
		{name: "not on the network", backend: "web", options: "network front", want: "no route to the container", detail: "no address on the network front", soon: true, prepare: existing(spec{})},
	} {
		for _, s := range []*shared{&docker, &podman} {
			if s.podman && f.docker {
				continue
			}
			t.Run(s.name()+"/"+f.name, func(t *testing.T) {
				w := newWorld(t, s)
				if f.prepare != nil {
					f.prepare(w)
				}
				w.Start(w.config(f.backend, f.options, "error_detail full", "start_attempts 1", "start_timeout "+cmp.Or(f.timeout, "15s"), "stop_timeout 1s"))
				res := w.Get("/")
				if res.Status != 503 || !strings.Contains(res.Body, f.want) || !strings.Contains(res.Body, f.detail) {
					t.Errorf("after %s: %d %s\nwant %q and %q", res.Took, res.Status, res.Body, f.want, f.detail)
				}
				if f.soon && res.Took > 5*time.Second {
					t.Errorf("the reason came after %s", res.Took)
				}
			})
		}
	}
}

func portOf(addr string) string { return addr[strings.LastIndex(addr, ":")+1:] }

// A published port accepts connections before the program listens: the request
// waits for the program.
func TestPublishedPort(t *testing.T) {
	for _, s := range []*shared{&docker, &podman} {
		t.Run(s.name(), func(t *testing.T) {
			if s.podman {
				t.Skip("its published ports need firewall rules, which these tests do not change")
			}
			w := newWorld(t, s)
			w.create(spec{name: "web", args: []string{"-delay", "700ms"}, publish: true})
			w.Start(w.config("web", "address published", "idle_timeout 300ms", "scale queue"))
			for range 3 {
				res := w.Get("/")
				w.ok(res)
				if res.Took < 700*time.Millisecond {
					t.Errorf("answered after %s, before the program listened", res.Took)
				}
				w.asleep()
			}
		})
	}
}

// The address of a container that stops goes to another one at once. No request
// reaches the wrong container.
func TestWrongContainerNeverAnswers(t *testing.T) {
	w := newWorld(t, &docker)
	net, err := w.e.Client.NetworkCreate(t.Context(), "reuse", client.NetworkCreateOptions{IPAM: &network.IPAM{
		Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.216.40.0/24")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.e.Clear(context.Background())
		_, _ = w.e.Client.NetworkRemove(context.Background(), net.ID, client.NetworkRemoveOptions{})
	})
	on := func(_ *container.Config, h *container.HostConfig) { h.NetworkMode = "reuse" }
	id := w.create(spec{name: "web", config: on})
	intruder := w.create(spec{name: "intruder", args: []string{"-status", "418"}, config: on})
	w.Start(w.config("web", "", "idle_timeout 5m", "scale queue", "stop_timeout 1s"))
	w.ok(w.Get("/"))

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var right, wrong, other atomic.Int64
	for range 4 {
		clients.Go(func() {
			h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
			for ctx.Err() == nil {
				res, err := h.Get("http://" + w.Addr + "/")
				if err != nil {
					other.Add(1)
					continue
				}
				res.Body.Close()
				switch res.StatusCode {
				case http.StatusOK:
					right.Add(1)
				case http.StatusTeapot:
					wrong.Add(1)
				default:
					other.Add(1)
				}
			}
		})
	}
	swaps := 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && swaps < 40; {
		if w.swap(id, intruder) {
			swaps++
		}
	}
	cancel()
	clients.Wait()
	figure(t, "%d requests: %d answered by the right container, %d by the wrong one, %d by none; the address changed hands %d times",
		right.Load()+wrong.Load()+other.Load(), right.Load(), wrong.Load(), other.Load(), swaps)
	if wrong.Load() > 0 || right.Load() < 1000 || swaps < 10 {
		t.Errorf("%d right, %d wrong, %d times the address changed hands", right.Load(), wrong.Load(), swaps)
	}
}

// swap stops a container, and gives its address to another one for a moment. It
// returns false if that has not got it.
func (w *world) swap(id, intruder string) bool {
	w.t.Helper()
	ctx, c := w.t.Context(), w.e.Client
	web := w.inspect(id)
	address := web.NetworkSettings.Networks["reuse"].IPAddress
	if !web.State.Running || !address.IsValid() {
		time.Sleep(10 * time.Millisecond)
		return false
	}
	_, _ = c.NetworkDisconnect(ctx, "reuse", client.NetworkDisconnectOptions{Container: intruder, Force: true})
	if _, err := c.NetworkConnect(ctx, "reuse", client.NetworkConnectOptions{Container: intruder, EndpointConfig: &network.EndpointSettings{
		IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: address},
	}}); err != nil {
		w.t.Fatal(err)
	}
	// What `docker stop` sends is no failure, so Usher starts it again at once.
	_, _ = c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "TERM"})
	got := false
	for range 20 {
		if _, err := c.ContainerStart(ctx, intruder, client.ContainerStartOptions{}); err == nil {
			got = true
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	_, _ = c.ContainerKill(ctx, intruder, client.ContainerKillOptions{Signal: "KILL"})
	w.await("the intruder is gone", func() bool { return !w.inspect(intruder).State.Running })
	return got
}
