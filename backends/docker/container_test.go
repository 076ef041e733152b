package docker

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func TestWhichContainersAreMeant(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	compose := map[string]string{composeProject: "shop", composeService: "web", composeOneOff: "False"}
	oneOff := map[string]string{composeProject: "shop", composeService: "web", composeOneOff: "True"}
	ours := map[string]string{composeProject: "shop", composeService: "web", labelCaddy: "x"}
	for _, x := range []struct {
		b      Backend
		name   string
		labels map[string]string
		want   bool
	}{
		{Backend{Container: "web"}, "web", nil, true},
		{Backend{Container: "/web"}, "web", nil, true},
		{Backend{Container: "web"}, "web2", nil, false},
		{Backend{Container: id[:12]}, "other", nil, true},
		{Backend{Container: id[:4]}, "other", nil, false},
		{Backend{Compose: "shop/web"}, "shop-web-1", compose, true},
		{Backend{Compose: "shop/web"}, "shop-web-run-1", oneOff, false},
		{Backend{Compose: "shop/api"}, "shop-web-1", compose, false},
		{Backend{Compose: "shop/web"}, "usher-x", ours, false},
		{Backend{Label: "tier"}, "a", map[string]string{"tier": "x"}, true},
		{Backend{Label: "tier=web"}, "a", map[string]string{"tier": "web"}, true},
		{Backend{Label: "tier=web"}, "a", map[string]string{"tier": "x"}, false},
		{Backend{Label: "tier="}, "a", map[string]string{"tier": "x"}, false},
		{Backend{Image: "web"}, "web", nil, false},
	} {
		b := provisioned(t, &x.b)
		if got := b.plan.selects(id, x.name, x.labels); got != x.want {
			t.Errorf("%s and container %s with %v: %v", b.plan, x.name, x.labels, got)
		}
	}
}

// Podman's states have other names.
func TestStatesOfBothEngines(t *testing.T) {
	for _, x := range []struct {
		state  container.State
		want   container.ContainerState
		active bool
	}{
		{container.State{Status: "running", Running: true}, container.StateRunning, true},
		{container.State{Status: "paused", Running: true, Paused: true}, container.StatePaused, false},
		{container.State{Status: "paused", Paused: true}, container.StatePaused, false},
		{container.State{Status: "restarting", Running: true, Restarting: true}, container.StateRestarting, false},
		{container.State{Status: "stopped"}, container.StateExited, false},
		{container.State{Status: "configured"}, container.StateCreated, false},
		{container.State{Status: "initialized"}, container.StateCreated, false},
		{container.State{Status: "exited"}, container.StateExited, false},
	} {
		v := newView(&container.InspectResponse{State: &x.state})
		if v.state != x.want || v.active() != x.active {
			t.Errorf("%+v is %s, active %v", x.state, v.state, v.active())
		}
	}
	if v := newView(&container.InspectResponse{State: &container.State{Health: &container.Health{}}}); v.health != nil {
		t.Error("Podman's empty health is a health check")
	}
}

// on makes a container with an address on each network.
func on(name string, addresses map[string]string, change ...func(*view)) *view {
	v := &view{name: name, networkMode: "bridge", exposed: []int{80}, networks: make(map[string]*network.EndpointSettings)}
	for n, a := range addresses {
		v.networks[n] = &network.EndpointSettings{NetworkID: "id-" + n, IPAddress: netip.MustParseAddr(a)}
	}
	for _, c := range change {
		c(v)
	}
	return v
}

func publish(host, port string) func(*view) {
	return func(v *view) {
		b := network.PortBinding{HostPort: port}
		if host != "" {
			b.HostIP = netip.MustParseAddr(host)
		}
		v.published = network.PortMap{network.MustParsePort("80/tcp"): {b}}
	}
}

func TestRoutes(t *testing.T) {
	two := map[string]string{"back": "10.1.0.2", "shop_front": "10.2.0.2"}
	const far, unix, remote = true, "unix:///s", "tcp://engine.example:2376"
	for _, x := range []struct {
		what, host string
		far        bool
		self       *view
		v          *view
		b          Backend
		want       string // an address, or a part of the failure
	}{
		{"own address", unix, !far, nil, on("a", map[string]string{"bridge": "172.17.0.2"}), Backend{}, "172.17.0.2:80"},
		{"port", unix, !far, nil, on("a", two), Backend{Port: 81}, "10.1.0.2:81"},
		{"network", unix, !far, nil, on("a", two), Backend{Network: "shop_front"}, "10.2.0.2:80"},
		{"network of a project", unix, !far, nil, on("a", two), Backend{Network: "front"}, "10.2.0.2:80"},
		{"no such network", unix, !far, nil, on("a", two), Backend{Network: "other"}, "no address on the network other; it is on back, shop_front"},
		{"published", unix, !far, nil, on("a", two, publish("0.0.0.0", "32768")), Backend{Address: "published"}, "127.0.0.1:32768"},
		{"published elsewhere", unix, !far, nil, on("a", two, publish("192.0.2.1", "32768")), Backend{Address: "published"}, "192.0.2.1:32768"},
		{"rootless", unix, far, nil, on("a", two, publish("", "32768")), Backend{}, "127.0.0.1:32768"},
		{"rootless, not published", unix, far, nil, on("a", two), Backend{}, "does not publish port 80"},
		{"remote", remote, !far, nil, on("a", two, publish("0.0.0.0", "32768")), Backend{}, "engine.example:32768"},
		{"remote, container", remote, !far, nil, on("a", two), Backend{Address: "container"}, "10.1.0.2:80"},
		{"Caddy in a container", unix, !far, on("caddy", map[string]string{"shop_front": "10.2.0.9"}), on("a", two), Backend{}, "10.2.0.2:80"},
		{"no common network", unix, !far, on("caddy", map[string]string{"web": "10.3.0.9"}), on("a", two), Backend{}, "Caddy runs in container caddy on the networks web, and this one is on back, shop_front"},
		{"proxied socket", remote, !far, on("caddy", map[string]string{"back": "10.1.0.9"}), on("a", two), Backend{}, "10.1.0.2:80"},
		{"network of the host", unix, !far, nil, on("a", nil, func(v *view) { v.networkMode = "host" }), Backend{}, "127.0.0.1:80"},
		{"two ports", unix, !far, nil, on("a", two, func(v *view) { v.exposed = []int{80, 443} }), Backend{}, "exposes the ports 80, 443"},
		{"no port", unix, !far, nil, on("a", two, func(v *view) { v.exposed = nil }), Backend{}, "exposes no port"},
		{"IPv6 alone", unix, !far, nil, on("a", nil, func(v *view) {
			v.networks["six"] = &network.EndpointSettings{GlobalIPv6Address: netip.MustParseAddr("fd00::2")}
		}), Backend{}, "[fd00::2]:80"},
	} {
		t.Run(x.what, func(t *testing.T) {
			x.b.Container = "a"
			e := &engine{access: access{Host: x.host}, facts: facts{far: x.far, self: x.self}}
			got, f := e.route(x.v, provisioned(t, &x.b).plan)
			if f != nil {
				got = f.Error()
				if !f.ForGood {
					t.Errorf("%v is to be tried again", f)
				}
			}
			if got != x.want && (f == nil || !strings.Contains(got, x.want)) {
				t.Errorf("%q, want %q", got, x.want)
			}
		})
	}
}
