package hub

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// SplitConfig divides the requests of a place between services, or between the
// revisions of one, by weight.
type SplitConfig struct {
	// The services, with their weights.
	Sides []SplitSide `json:"sides"`

	// One placeholder, such as `{http.request.cookie.uid}`. Requests with equal
	// values go to the same side, and changed weights move only the values that
	// have to move. Requests for which it is empty are divided at random. Default:
	// all are.
	By string `json:"by,omitempty"`

	// What becomes of a request whose side cannot serve: the service is failing,
	// suspended or not known, or its platform cannot be reached. `error`: the client
	// gets the error. `next`: the request goes to the next side that has a weight,
	// unless an instance may have seen it. Default: `error`.
	OnFailing string `json:"on_failing,omitempty"`
}

// SplitSide is one of the services of a split.
type SplitSide struct {
	// The name of a service of the configuration, or of one that is made while Caddy
	// runs. Or `<service>@<number>`, for a revision of a service that is made while
	// Caddy runs.
	Service string `json:"service"`

	// The share of the requests, in proportion to the weights of the other sides:
	// 0 to 1000000. At least one side has more than 0.
	Weight int `json:"weight"`
}

// The values of SplitConfig.OnFailing.
const (
	OnFailingError = "error"
	OnFailingNext  = "next"
)

const (
	// MostSplitSides is how many sides a split has at most.
	MostSplitSides = 32

	// MostSplitWeight is the greatest weight of a side.
	MostSplitWeight = 1_000_000
)

// WithDefaults returns a copy of c in which every option is set but By.
func (c SplitConfig) WithDefaults() SplitConfig {
	c.OnFailing = cmp.Or(c.OnFailing, OnFailingError)
	return c
}

// Validate checks what the split of that name says, with every option set.
func (c SplitConfig) Validate(name string) error {
	if c.OnFailing != OnFailingError && c.OnFailing != OnFailingNext {
		return fmt.Errorf("on_failing '%s' is unknown: use next or error", c.OnFailing)
	}
	if len(c.Sides) < 2 {
		return errors.New("it divides nothing: give at least two services, each with its weight")
	}
	if len(c.Sides) > MostSplitSides {
		return fmt.Errorf("it has %d sides, but can have at most %d", len(c.Sides), MostSplitSides)
	}
	weights := make(map[string]int, len(c.Sides))
	for _, side := range c.Sides {
		service, _, err := sideOf(side.Service)
		switch _, twice := weights[side.Service]; {
		case err != nil:
			return err
		case twice:
			return fmt.Errorf("%s is given twice", side.Service)
		case service == name:
			return fmt.Errorf("%s is the name of the split itself: give the split a name of its own", name)
		}
		weights[side.Service] = side.Weight
	}
	if c.By != "" {
		placeholder, err := PlaceholderName(c.By)
		if err != nil {
			return fmt.Errorf("by: %w", err)
		}
		if IsLearned(placeholder) {
			return fmt.Errorf("by: %s has no value when a request comes: use one that comes with the request", c.By)
		}
	}
	return checkWeights(weights)
}

// checkWeights checks the weights of all sides.
func checkWeights(weights map[string]int) error {
	sum := 0
	for service, w := range weights {
		if w < 0 || w > MostSplitWeight {
			return fmt.Errorf("the weight of %s is %d, but must be from 0 to %d", service, w, MostSplitWeight)
		}
		sum += w
	}
	if sum == 0 {
		return errors.New("all weights are 0, so no request would go anywhere: give at least one side more")
	}
	return nil
}

// sideOf reads the name of a side. revision is 0 for a service as a whole.
func sideOf(name string) (service string, revision int, err error) {
	service, number, beside := strings.Cut(name, "@")
	if err := CheckName(service); err != nil {
		return "", 0, err
	}
	if !beside {
		return service, 0, nil
	}
	if revision, err = strconv.Atoi(number); err != nil || revision < 1 || strconv.Itoa(revision) != number {
		return "", 0, fmt.Errorf("'%s' names no revision of service %s: write %s@<number>, with a number from 'caddy usher history %s'", name, service, service, service)
	}
	return service, revision, nil
}

// Split is a split of one configuration. Its weights can change while it is used.
// All methods are safe for concurrent use once the configuration is provisioned.
type Split struct {
	Name   string
	Config SplitConfig // with every option set

	// Placeholder is that of Config.By without its braces; empty without.
	Placeholder string

	hub        *Hub
	configured map[string]*Service // the services of its configuration
	sides      []side
	weights    atomic.Pointer[sideWeights]
}

// side is what a request needs of a side.
type side struct {
	service  string
	revision int    // 0: the service as a whole
	derived  string // of a revision: the name of the service that it runs as beside the one in force
	seed     uint64
	requests prometheus.Counter
}

// sideWeights are the weights in force, in the order of the sides. They do not change.
type sideWeights struct {
	of  []float64
	set *SplitWeights // what an operator has set; nil if they are the configuration's
}

// NewSplit makes the split of that name of a configuration. services are those of
// the configuration; more may come into the map until it is in force.
func (h *Hub) NewSplit(name string, c SplitConfig, services map[string]*Service) (*Split, error) {
	c = c.WithDefaults()
	if err := c.Validate(name); err != nil {
		return nil, err
	}
	s := &Split{Name: name, Config: c, hub: h, configured: services}
	if c.By != "" {
		s.Placeholder, _ = PlaceholderName(c.By) // it was checked
	}
	for _, given := range c.Sides {
		x := side{seed: xxhash.Sum64String(name + "\x00" + given.Service), requests: splitRequestsTotal.WithLabelValues(name, given.Service)}
		x.service, x.revision, _ = sideOf(given.Service)
		if x.revision > 0 {
			x.derived = revisionName(x.service, x.revision)
		}
		s.sides = append(s.sides, x)
	}
	s.use(nil)
	return s, nil
}

// given returns the weights of the configuration.
func (s *Split) given() map[string]int {
	weights := make(map[string]int, len(s.Config.Sides))
	for _, side := range s.Config.Sides {
		weights[side.Service] = side.Weight
	}
	return weights
}

// use puts weights in force that an operator has set; nil puts those of the
// configuration in force.
func (s *Split) use(set *SplitWeights) {
	w := &sideWeights{of: make([]float64, len(s.sides)), set: set}
	for k, side := range s.Config.Sides {
		n := side.Weight
		if set != nil {
			n = set.Weights[side.Service]
		}
		w.of[k] = float64(n)
	}
	s.weights.Store(w)
}

// Equal reports whether two splits say the same.
func (s *Split) Equal(c SplitConfig) bool {
	c = c.WithDefaults()
	return slices.Equal(s.Config.Sides, c.Sides) && s.Config.By == c.By && s.Config.OnFailing == c.OnFailing
}

// PassesOn reports whether a request goes to another side if its side cannot serve.
func (s *Split) PassesOn() bool { return s.Config.OnFailing == OnFailingNext }

// HashOf returns the hash of a value of the placeholder, for Choose. It is the same
// in every process.
func HashOf(value string) uint64 { return xxhash.Sum64String(value) }

// Choose returns the side of a request with that hash, as its index, or -1 if there
// is none. The sides in left, one bit for each, are not chosen: so the next one in
// the order of the hash is found. It allocates nothing.
//
// It is weighted rendezvous hashing by the logarithmic method (C. Schindelhauer,
// G. Schomaker: Weighted Distributed Hash Tables, SPAA 2005). Each side gets a
// number u between 0 and 1, evenly distributed, from the hash and the names of the
// split and the side. The side with the greatest weight/-ln(u) is chosen: each is
// so with a probability in proportion to its weight. What a side scores depends on
// its own weight alone, so a request goes elsewhere only if its side has lost, or
// another one has won.
func (s *Split) Choose(hash uint64, left uint32) int {
	best, at := 0.0, -1
	for k, weight := range s.weights.Load().of {
		if weight == 0 || left&(1<<k) != 0 {
			continue
		}
		if score := weight / -math.Log(unit(mix(hash^s.sides[k].seed))); score > best {
			best, at = score, k
		}
	}
	return at
}

// unit makes a number between 0 and 1, both excluded.
func unit(x uint64) float64 { return (float64(x>>12) + 0.5) / (1 << 52) }

// mix spreads x over all bits: one that differs in one bit gives another number. It
// is the last step of SplitMix64 (G. Steele, D. Lea, C. Flood: Fast Splittable
// Pseudorandom Number Generators, OOPSLA 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Find returns the service of a side: s of the configuration, or made, which was
// made while Caddy runs. Both are nil if there is none.
func (s *Split) Find(k int) (service *Service, made *Made) {
	side := &s.sides[k]
	if side.revision > 0 {
		return nil, s.hub.findRevision(side.service, side.revision, side.derived)
	}
	if service := s.configured[side.service]; service != nil {
		return service, nil
	}
	return nil, s.hub.Find(side.service)
}

// Count counts a request that goes to a side.
func (s *Split) Count(k int) { s.sides[k].requests.Inc() }

// CheckSplits refuses a split of g that cannot work. It is called once all services
// of g are known.
func CheckSplits(g *Generation) error {
	for name, s := range g.Splits {
		if d := g.Definitions[name]; d != nil {
			return fmt.Errorf("%s is a split, and also a service, which is defined in %s: give one of them another name", name, d.Place)
		}
		for k, side := range s.sides {
			defined, given := g.Definitions[side.service] != nil, s.Config.Sides[k].Service
			switch {
			case defined && side.revision > 0:
				return fmt.Errorf("split %s: %s is no service: %s belongs to the configuration, of which no revisions are kept", name, given, side.service)
			case !defined && g.Made == nil:
				return fmt.Errorf("split %s: service %s is not defined, and no services can be made at run time: define it, or give the configuration a registry", name, given)
			}
		}
	}
	return nil
}
