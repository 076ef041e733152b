package hub

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// A Need is a service without which another one does not start.
type Need struct {
	// The name of the service. It is defined in the same configuration.
	Service string `json:"service"`

	// Whether it is enough that an instance of the service was started.
	// Default: one has to be ready.
	Started bool `json:"started,omitempty"`
}

// Busy is how it is found out whether an instance works in the background, while
// it has no request. One of the two is given.
type Busy struct {
	// The path that the instance is asked for by GET. A status of 2xx means that
	// it is busy, any other answer that it is free. An instance that does not
	// answer three times in a row counts as free. The request has the scheme, the
	// host and the headers of an http readiness check.
	HTTP string `json:"http,omitempty"`

	// From which use of the processor on the instance is busy, in percent of one
	// core, measured for a second. Only for backends that can tell: processes on Linux, and containers.
	CPU float64 `json:"cpu,omitempty"`
}

// mostCPU is the greatest threshold of Busy.CPU: of a machine with many cores.
const mostCPU = 100_000

func (s ServiceConfig) validateTogether() error {
	if n := s.Instances.Awake; n < 0 || n > s.Instances.Max {
		return fmt.Errorf("instances: awake is %d, but must be between 0 and the maximum, which is %d", n, s.Instances.Max)
	}
	for k, n := range s.Needs {
		if err := CheckName(n.Service); err != nil {
			return fmt.Errorf("needs: %w", err)
		}
		if slices.ContainsFunc(s.Needs[:k], func(o Need) bool { return o.Service == n.Service }) {
			return fmt.Errorf("needs: %s is named twice", n.Service)
		}
	}
	if s.Group != "" {
		if err := CheckName(s.Group); err != nil {
			return fmt.Errorf("group: %w", err)
		}
	}
	if err := CheckCount("max_requests", s.MaxRequests, 0, scaler.MaxConcurrency); err != nil {
		return err
	}
	if s.MaxAge < 0 {
		return fmt.Errorf("max_age must be positive, not %v", time.Duration(s.MaxAge))
	}
	if err := CheckDuration("max_age", s.MaxAge); err != nil {
		return err
	}
	return s.Busy.validate()
}

func (b *Busy) validate() error {
	switch {
	case b == nil:
		return nil
	case b.HTTP != "" && b.CPU != 0:
		return errors.New("busy: say http or cpu, not both")
	case b.HTTP == "" && b.CPU == 0:
		return errors.New("busy: say how an instance is asked: by http and a path, or by cpu and a percentage")
	case b.HTTP != "" && !strings.HasPrefix(b.HTTP, "/"):
		return fmt.Errorf("busy: the path '%s' must begin with '/'", b.HTTP)
	case b.HTTP == "" && !(b.CPU > 0 && b.CPU <= mostCPU):
		return fmt.Errorf("busy: cpu is %v percent, but must be above 0 and at most %d", b.CPU, mostCPU)
	}
	return nil
}

func (b *Busy) settings() control.Busy {
	if b == nil {
		return control.Busy{}
	}
	return control.Busy{Path: b.HTTP, CPU: b.CPU}
}

// checkBusy refuses a look at the processor where the backend has none.
func (d *Definition) checkBusy() error {
	if b := d.Service.Busy; b == nil || b.CPU == 0 {
		return nil
	}
	if t, ok := d.Backend.(scaler.CPUTeller); ok && t.TellsCPU() {
		return nil
	}
	return fmt.Errorf("busy cpu: the backend %s cannot tell how much its instances work: use busy http", d.BackendType())
}

// CheckNeeds returns an error if services need each other in a circle.
func CheckNeeds(all map[string]*Definition) error {
	done := make(map[string]bool)
	var way []string
	var visit func(name string) error
	visit = func(name string) error {
		if k := slices.Index(way, name); k >= 0 {
			return fmt.Errorf("none of these could start first: %s: leave out one of the needs", strings.Join(append(way[k:], name), " needs "))
		}
		if done[name] || all[name] == nil {
			return nil
		}
		way = append(way, name)
		for _, n := range all[name].Service.Needs {
			if err := visit(n.Service); err != nil {
				return err
			}
		}
		way, done[name] = way[:len(way)-1], true
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}

// settings are those of d, with the loops of the services that it names. The
// hub's lock is held.
func (h *Hub) settings(d *Definition) *control.Settings {
	if len(d.Service.Needs) == 0 && d.Service.Group == "" {
		return &d.Settings
	}
	s := d.Settings
	for _, n := range d.Service.Needs {
		if other := h.services[n.Service]; other != nil {
			s.Needs = append(s.Needs, control.Need{Loop: other.Loop, Started: n.Started})
		}
	}
	if name := d.Service.Group; name != "" {
		if h.groups == nil {
			h.groups = make(map[string]*control.Group)
		}
		if h.groups[name] == nil {
			h.groups[name] = new(control.Group)
		}
		s.Group = h.groups[name]
	}
	return &s
}

// Together are the options that tie a service to others, and bound the life of
// its instances. They are part of ServiceConfig.
type Together struct {
	// The services without which this one does not start. A start wakes them, and
	// they stay awake as long as this one has instances. If one of them cannot be
	// started, requests that wait get its reason. Default: none.
	Needs []Need `json:"needs,omitempty"`

	// The group of the service: services of one group wake and sleep together.
	// Default: it is in none.
	Group string `json:"group,omitempty"`

	// How many requests an instance gets in its life. After that it finishes what
	// it has, and another one takes its place. Default: no limit.
	MaxRequests int `json:"max_requests,omitempty"`

	// How long an instance may exist. Then another one takes its place, where the
	// maximum and `overlap` allow it before the old one goes. Up to a tenth less,
	// so that instances of one age are not replaced at once. Default: no limit.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How an instance without a request is asked whether it works in the
	// background, before it is stopped. A busy one is asked again, after pauses
	// from 1s to 1m. It holds for instances that are no longer needed, not for a
	// restart or a changed backend. Default: instances are not asked.
	Busy *Busy `json:"busy,omitempty"`
}

// BlockedNeed is a service that another one needs and that cannot serve.
type BlockedNeed struct {
	Service   string `json:"service"`
	Suspended bool   `json:"suspended"` // by an operator; otherwise it cannot be started
	Trouble   string `json:"trouble"`   // in the words of the one that needs it
}

// blockedBy returns what keeps s from being started, of all that it needs, or nil.
func (s *Service) blockedBy() *BlockedNeed {
	for _, n := range s.Current().Service.Needs {
		need := s.Hub.Service(n.Service)
		if need == nil {
			continue
		}
		if off := need.Suspended(); off != nil {
			return &BlockedNeed{need.Name, true, fmt.Sprintf("it needs %s, which is suspended (%s)", need.Name, off.Reason)}
		}
		st := need.Loop.Status()
		if st.Ready > 0 {
			continue
		}
		if b := need.blockedBy(); b != nil {
			b.Trouble = "it needs " + need.Name + ": " + b.Trouble
			return b
		}
		if st.State == control.Failing && st.LastError != nil {
			return &BlockedNeed{need.Name, false, "it needs " + need.Name + ": " + st.LastError.Error()}
		}
	}
	return nil
}
