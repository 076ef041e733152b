package docker

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// view is what an inspection said of a container. It does not change.
type view struct {
	id, name string
	image    string // its id
	labels   map[string]string

	state    container.ContainerState
	started  string // when it was started last, as the engine writes it
	created  time.Time
	exitCode int
	oom      bool
	problem  string // the engine's word on why it could not be started
	health   *container.Health

	networkMode string
	networks    map[string]*network.EndpointSettings
	published   network.PortMap
	exposed     []int // TCP ports, in order
	memory      int64
	restart     container.RestartPolicyMode
	stopSignal  string

	raw *container.InspectResponse
}

func newView(c *container.InspectResponse) *view {
	v := &view{id: c.ID, name: strings.TrimPrefix(c.Name, "/"), image: c.Image, raw: c}
	v.created, _ = time.Parse(time.RFC3339Nano, c.Created)
	if s := c.State; s != nil {
		v.state, v.started, v.exitCode, v.oom, v.problem, v.health = s.Status, s.StartedAt, s.ExitCode, s.OOMKilled, s.Error, s.Health
		switch {
		// Podman's states have more names than Docker's.
		case s.Restarting:
			v.state = container.StateRestarting
		case s.Paused:
			v.state = container.StatePaused
		case s.Running:
			v.state = container.StateRunning
		case s.Status == "stopped":
			v.state = container.StateExited
		case s.Status == "configured", s.Status == "initialized":
			v.state = container.StateCreated
		}
		if v.health != nil && (v.health.Status == "" || v.health.Status == container.NoHealthcheck) {
			v.health = nil
		}
	}
	if cfg := c.Config; cfg != nil {
		v.labels, v.stopSignal = cfg.Labels, cfg.StopSignal
		for p := range cfg.ExposedPorts {
			if p.Proto() == network.TCP {
				v.exposed = append(v.exposed, int(p.Num()))
			}
		}
	}
	if h := c.HostConfig; h != nil {
		v.networkMode, v.memory, v.restart = string(h.NetworkMode), h.Memory, h.RestartPolicy.Name
		for p := range h.PortBindings {
			// A port that is published need not be exposed.
			if p.Proto() == network.TCP && !slices.Contains(v.exposed, int(p.Num())) {
				v.exposed = append(v.exposed, int(p.Num()))
			}
		}
	}
	slices.Sort(v.exposed)
	if n := c.NetworkSettings; n != nil {
		v.networks, v.published = n.Networks, n.Ports
	}
	return v
}

// runs says whether the container's program runs, paused or not.
func (v *view) runs() bool {
	return v != nil && (v.state == container.StateRunning || v.state == container.StatePaused)
}

// paused says whether it is frozen.
func (v *view) paused() bool { return v != nil && v.state == container.StatePaused }

// active says whether it runs and is not frozen.
func (v *view) active() bool { return v.runs() && !v.paused() }

// unhealthy says whether its health check fails.
func (v *view) unhealthy() bool {
	return v.health != nil && v.health.Status == container.Unhealthy
}

// since is when its program was started.
func (v *view) since() time.Time {
	if t, err := time.Parse(time.RFC3339Nano, v.started); err == nil && t.Year() > 1 {
		return t
	}
	return v.created
}

// networkNames are the names of its networks, for messages.
func (v *view) networkNames() string {
	switch names := slices.Sorted(maps.Keys(v.networks)); {
	case len(names) > 0:
		return strings.Join(names, ", ")
	case v.networkMode != "":
		return v.networkMode
	}
	return "none"
}

// short is an id as people read it.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// Labels of Compose.
const (
	composeProject = "com.docker.compose.project"
	composeService = "com.docker.compose.service"
	composeOneOff  = "com.docker.compose.oneoff"
)

// fullID is what the ids of containers look like.
var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// selects says whether a container is one of those that the plan means. What
// Usher has made is never meant by its other labels.
func (p *plan) selects(id, name string, labels map[string]string) bool {
	if labels[labelCaddy] != "" {
		return false
	}
	switch p.form {
	case formContainer:
		if fullID.MatchString(p.name) {
			return id == p.name // a container can have the id of another one as its name
		}
		return name == p.name || len(p.name) >= 12 && strings.HasPrefix(id, p.name)
	case formCompose:
		project, service, _ := strings.Cut(p.name, "/")
		return labels[composeProject] == project && labels[composeService] == service && !strings.EqualFold(labels[composeOneOff], "true")
	case formLabel:
		value, ok := labels[p.name]
		return ok && (!p.hasValue || value == p.labelValue)
	}
	return false
}

// ports lists ports for messages.
func ports(all []int) string {
	words := make([]string, len(all))
	for k, p := range all {
		words[k] = strconv.Itoa(p)
	}
	return strings.Join(words, ", ")
}
