package marathon

import (
	"fmt"
	"net"
	"regexp"
	"strconv"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// endpoint returns where a running task takes requests; "" while Marathon does
// not know yet. go-marathon's TaskEndpoints is not used: it fails on apps that
// are no docker containers and on tasks without ports, and does not look at
// the state of a task.
//
// The ports of a task are in the order of the app's portDefinitions, or of
// those of its portMappings that map to a port of the host: the place in one
// list is not the place in the other.
func (a *appJSON) endpoint(t *gomarathon.Task, p port) (string, *scaler.Failure) {
	mode, mappings := a.network()
	if mode == "host" {
		return a.hostPort(t, p)
	}
	if len(mappings) == 0 && a.IPAddress != nil && a.IPAddress.Discovery != nil {
		var names []string
		for _, d := range a.IPAddress.Discovery.Ports {
			names = append(names, d.Name)
		}
		at, f := a.find(p, names, "ipAddress.discovery.ports")
		if f != nil {
			return "", f
		}
		return ofTask(t, a.IPAddress.Discovery.Ports[at].Number), nil
	}
	var names []string
	for _, m := range mappings {
		names = append(names, m.Name)
	}
	at, f := a.find(p, names, "portMappings")
	if f != nil {
		return "", f
	}
	mapped := func(m portMappingJSON) bool {
		// A bridge maps every port; what is not named is chosen.
		return m.HostPort != nil || mode == "container/bridge"
	}
	if !mapped(mappings[at]) {
		return ofTask(t, mappings[at].ContainerPort), nil
	}
	place := 0
	for _, m := range mappings[:at] {
		if mapped(m) {
			place++
		}
	}
	if place >= len(t.Ports) {
		return "", nil
	}
	return join(t.Host, t.Ports[place]), nil
}

// network returns the mode of the app's first network, and its port mappings,
// in the form of any version of Marathon.
func (a *appJSON) network() (mode string, mappings []portMappingJSON) {
	if len(a.Networks) > 0 {
		mode = a.Networks[0].Mode
	}
	if c := a.Container; c != nil {
		mappings = c.PortMappings
		if d := c.Docker; d != nil {
			if len(mappings) == 0 {
				mappings = d.PortMappings
			}
			switch {
			case mode != "":
			case d.Network == "BRIDGE":
				mode = "container/bridge"
			case d.Network == "USER":
				mode = "container"
			}
		}
	}
	switch {
	case mode != "":
	case a.IPAddress != nil:
		mode = "container"
	default:
		mode = "host"
	}
	return mode, mappings
}

// hostPort is the endpoint of a task on the network of its host.
func (a *appJSON) hostPort(t *gomarathon.Task, p port) (string, *scaler.Failure) {
	at := p.index
	if a.PortDefinitions != nil {
		var names []string
		for _, d := range a.PortDefinitions {
			names = append(names, d.Name)
		}
		var f *scaler.Failure
		if at, f = a.find(p, names, "portDefinitions"); f != nil {
			return "", f
		}
	} else if p.name != "" {
		return "", a.noPort(p, "the app has no portDefinitions, so its ports have no names; use port_index")
	}
	if at >= len(t.Ports) {
		if len(t.Ports) > 0 {
			return "", a.noPort(p, fmt.Sprintf("its tasks have %d ports, counted from 0", len(t.Ports)))
		}
		return "", nil
	}
	return join(t.Host, t.Ports[at]), nil
}

// find returns the place of a port in a list of the app's.
func (a *appJSON) find(p port, names []string, list string) (int, *scaler.Failure) {
	if p.name != "" {
		for k, n := range names {
			if n == p.name {
				return k, nil
			}
		}
		return 0, a.noPort(p, fmt.Sprintf("its %s are named %q", list, names))
	}
	if p.index >= len(names) {
		return 0, a.noPort(p, fmt.Sprintf("it has %d %s, counted from 0", len(names), list))
	}
	return p.index, nil
}

func (a *appJSON) noPort(p port, why string) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonNotFound, ForGood: true, Short: "the app has no " + p.String(),
		Detail: fmt.Sprintf("app %s has no %v: %s; change port_index or port_name of the backend, or the app", a.ID, p, why),
	}
}

// ofTask is an endpoint at the task's own address, which is known only once
// the task runs.
func ofTask(t *gomarathon.Task, port int) string {
	if len(t.IPAddresses) == 0 || t.IPAddresses[0].IPAddress == "" {
		return ""
	}
	return join(t.IPAddresses[0].IPAddress, port)
}

// hostName is what a task's host can be called, addresses included. Requests
// are sent there, so nothing else is taken for one.
var hostName = regexp.MustCompile(`^[0-9A-Za-z_:]([0-9A-Za-z_.:-]*[0-9A-Za-z_.:])?$`)

func join(host string, port int) string {
	if !hostName.MatchString(host) || port < 1 || port > 65535 {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// negative says whether Marathon's own checks have taken back that a task is
// alive. Before it was alive for the first time their word counts for nothing:
// the next check may be a minute away. No results say nothing either: there are
// none after a change of leader.
func negative(t *gomarathon.Task) bool {
	for _, r := range t.HealthCheckResults {
		if r != nil && !r.Alive && r.LastSuccess != "" {
			return true
		}
	}
	return false
}

// positive says whether all checks of the app call a task alive.
func (a *appJSON) positive(t *gomarathon.Task) bool {
	if len(a.HealthChecks) == 0 {
		return true
	}
	for _, r := range t.HealthCheckResults {
		if r == nil || !r.Alive {
			return false
		}
	}
	return len(t.HealthCheckResults) > 0
}
