package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// facts are what is known of an engine, as far as it concerns addresses.
type facts struct {
	// far is true if containers' own addresses cannot be reached from the host:
	// a rootless engine, or one in a virtual machine.
	far bool

	// self is the container that Caddy runs in, if it is one of this engine's.
	self *view
}

// learn asks the engine for its facts. What it does not tell is not known: a
// socket proxy may forbid it.
func learn(ctx context.Context, c *client.Client) facts {
	var f facts
	if res, err := c.Info(ctx, client.InfoOptions{}); err == nil {
		f.far = strings.Contains(res.Info.OperatingSystem, "Docker Desktop") ||
			slices.ContainsFunc(res.Info.SecurityOptions, func(o string) bool { return strings.HasPrefix(o, "name=rootless") })
	}
	for _, id := range ownIDs() {
		if res, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{}); err == nil {
			f.self = newView(&res.Container)
			return f
		}
	}
	return f
}

// containerID is the id of a container, as it stands in paths.
var containerID = regexp.MustCompile(`[/-]([0-9a-f]{64})(?:[/.]|$)`)

// ownIDs returns what may be the id of the container that this process is in,
// the surest first.
func ownIDs() []string {
	var ids []string
	add := func(id string) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	// The files of the container's network are mounted from a directory with
	// its id; other mounts can be of other containers.
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, " /etc/hostname ") && !strings.Contains(line, " /etc/hosts ") && !strings.Contains(line, " /etc/resolv.conf ") {
				continue
			}
			for _, m := range containerID.FindAllStringSubmatch(line, -1) {
				add(m[1])
			}
		}
	}
	inside := len(ids) > 0
	for _, file := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(file); err == nil {
			inside = true
		}
	}
	if !inside {
		return nil
	}
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for _, m := range containerID.FindAllStringSubmatch(strings.ReplaceAll(string(text), "\n", "/"), -1) {
			add(m[1])
		}
	}
	if name, err := os.Hostname(); err == nil && len(name) == 12 {
		add(name)
	}
	return ids
}

// noRoute is the failure of a container that Caddy cannot reach.
func noRoute(v *view, why string) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonConflict, ForGood: true, Short: "Caddy has no route to the container",
		Detail: "container " + v.name + ": " + why,
	}
}

// route returns the address at which Caddy reaches a container that runs.
func (e *engine) route(v *view, p *plan) (string, *scaler.Failure) {
	port, f := v.port(p)
	if f != nil {
		return "", f
	}
	self := e.facts.self
	onHost := self == nil || self.networkMode == "host"
	switch {
	case p.address == addressPublished:
		return e.publishedAt(v, port)
	case v.networkMode == "host" && onHost:
		return net.JoinHostPort(e.host(), strconv.Itoa(port)), nil
	case p.address == addressContainer, p.network != "":
		return v.at(port, p.network, nil)
	case !onHost:
		return v.at(port, "", self)
	case e.access.local() && runtime.GOOS == "linux" && !e.facts.far:
		return v.at(port, "", nil)
	}
	return e.publishedAt(v, port)
}

// port is the port on which the container listens.
func (v *view) port(p *plan) (int, *scaler.Failure) {
	switch {
	case p.port != 0:
		return p.port, nil
	case len(v.exposed) == 1:
		return v.exposed[0], nil
	}
	f := &scaler.Failure{Reason: scaler.ReasonConflict, ForGood: true, Short: "the container's port is not known"}
	if len(v.exposed) == 0 {
		f.Detail = fmt.Sprintf("container %s exposes no port: say on which it listens, with `port <n>`", v.name)
	} else {
		f.Detail = fmt.Sprintf("container %s exposes the ports %s: say which takes the requests, with `port <n>`", v.name, ports(v.exposed))
	}
	return 0, f
}

// at returns the container's own address: on the network of that name, or on
// one that it shares with another container, or on any.
func (v *view) at(port int, name string, with *view) (string, *scaler.Failure) {
	for _, n := range slices.Sorted(maps.Keys(v.networks)) {
		ep := v.networks[n]
		if ep == nil || name != "" && n != name && !strings.HasSuffix(n, "_"+name) || with != nil && !with.isOn(n, ep) {
			continue
		}
		if addr := ownAddress(ep); addr.IsValid() {
			return netip.AddrPortFrom(addr, uint16(port)).String(), nil
		}
	}
	switch {
	case with != nil:
		return "", noRoute(v, fmt.Sprintf("Caddy runs in container %s on the networks %s, and this one is on %s: put both on one network, or name one with `network`", with.name, with.networkNames(), v.networkNames()))
	case name != "":
		return "", noRoute(v, fmt.Sprintf("it has no address on the network %s; it is on %s", name, v.networkNames()))
	}
	return "", noRoute(v, "it has no address of its own; its network is "+v.networkNames())
}

// ownAddress is the address of a container on a network.
func ownAddress(ep *network.EndpointSettings) netip.Addr {
	if ep.IPAddress.IsValid() && !ep.IPAddress.IsUnspecified() {
		return ep.IPAddress
	}
	return ep.GlobalIPv6Address
}

// isOn says whether the container is on the network, too.
func (v *view) isOn(name string, ep *network.EndpointSettings) bool {
	own := v.networks[name]
	return own != nil && (own.NetworkID == "" || ep.NetworkID == "" || own.NetworkID == ep.NetworkID)
}

// publishedAt returns the address at which the engine publishes the port.
func (e *engine) publishedAt(v *view, port int) (string, *scaler.Failure) {
	p, _ := network.PortFrom(uint16(port), network.TCP)
	for _, b := range v.published[p] {
		if b.HostPort == "" || b.HostPort == "0" {
			continue
		}
		host := e.host()
		if b.HostIP.IsValid() && !b.HostIP.IsUnspecified() && e.access.local() {
			host = b.HostIP.String()
		}
		return net.JoinHostPort(host, b.HostPort), nil
	}
	return "", noRoute(v, fmt.Sprintf("it does not publish port %d, and Caddy cannot reach its own address; publish the port on 127.0.0.1, or put Caddy on a network of the container's (%s) with `address container`", port, v.networkNames()))
}

// host is the machine of the engine, as seen from Caddy.
func (e *engine) host() string {
	if u, err := url.Parse(e.access.Host); err == nil && u.Scheme == "tcp" {
		return cmp.Or(u.Hostname(), "127.0.0.1")
	}
	return "127.0.0.1"
}

// isPublished says whether an address is a port of the engine's machine, behind
// which a proxy may listen for the container.
func (v *view) isPublished(address string) bool {
	_, port, err := net.SplitHostPort(address)
	if err != nil || v.networkMode == "host" {
		return false
	}
	for _, bindings := range v.published {
		for _, b := range bindings {
			if b.HostPort == port && !v.hasAddress(address) {
				return true
			}
		}
	}
	return false
}

// hasAddress says whether the address is the container's own.
func (v *view) hasAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	for _, ep := range v.networks {
		if ep != nil && ownAddress(ep).String() == host {
			return true
		}
	}
	return false
}
