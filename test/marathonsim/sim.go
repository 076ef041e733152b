package marathonsim

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// A Sim is a running simulator.
type Sim struct {
	Seed uint64 // of this run

	cfg         Config
	engine      *engine
	journal     *journal
	nodes       []*node
	agents      []*agent
	frameworkID string
	claim       net.Listener // holds the simulator's addresses
	deadEnd     string       // an address without a listener
	control     *http.Server
	controlAddr string
	background  sync.WaitGroup

	mu      sync.Mutex
	leading *node
	closed  bool
	auth    Auth
}

// New starts a simulator. Close ends it, and every process that it started.
func New(cfg Config) (*Sim, error) {
	cfg.setDefaults()
	p, err := findProfile(cfg.Profile)
	if err != nil {
		return nil, err
	}
	if cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	s := &Sim{Seed: cfg.Seed, journal: &journal{print: cfg.Log}, auth: cfg.Auth}
	if err := s.claimAddresses(&cfg); err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "marathonsim-")
		if err != nil {
			s.claim.Close()
			return nil, err
		}
		cfg.Dir, cfg.removeSandboxes = dir, true
	}
	s.cfg = cfg
	e := newEngine(cfg, p, newClock(cfg.Speed), s.journal)
	s.engine = e
	e.procs = newLauncher(cfg.Dir)
	s.frameworkID = e.uuid() + "-0000"
	master := e.uuid()
	for n, spec := range cfg.AgentSpecs {
		a := newAgent(cfg, spec, n)
		a.id = fmt.Sprintf("%s-S%d", master, n)
		e.agents = append(e.agents, a)
	}
	s.agents = e.agents
	e.startTickers()
	go e.loop()
	for n := range cfg.Nodes {
		addr := fmt.Sprintf("127.0.%d.1:0", cfg.subnet)
		if len(cfg.Listen) > 0 {
			addr = cfg.Listen[n]
		}
		nd := &node{s: s, n: n + 1, addr: addr, client: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
		if err := nd.start(); err != nil {
			s.Close()
			return nil, err
		}
		s.nodes = append(s.nodes, nd)
	}
	if err := s.startControl(); err != nil {
		s.Close()
		return nil, err
	}
	s.elect(s.nodes[e.rng.IntN(len(s.nodes))])
	return s, nil
}

// claimAddresses finds a part of the loopback network that no other simulator
// on this machine uses, so that every agent can offer the same ports: a
// listener on the last address of 127.0.x.0/24 is the claim to all of it, and
// to 127.64.x.0/24.
func (s *Sim) claimAddresses(cfg *Config) error {
	start := rand.IntN(250)
	for n := range 250 {
		x := 1 + (start+n)%250
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.%d.254:29999", x))
		if err != nil {
			continue
		}
		s.claim = ln
		s.deadEnd = fmt.Sprintf("127.0.%d.253:9", x)
		cfg.subnet = x
		return nil
	}
	return errors.New("marathonsim: no free part of the loopback network")
}

func newAgent(cfg Config, spec AgentSpec, n int) *agent {
	a := &agent{
		ip: fmt.Sprintf("127.0.%d.%d", cfg.subnet, n+2), attributes: spec.Attributes, hostname: spec.Hostname,
		cpus: spec.CPUs, mem: spec.Mem, disk: spec.Disk, firstPort: spec.FirstPort, ports: map[int]bool{},
	}
	if a.hostname == "" {
		a.hostname = a.ip
	}
	if a.cpus == 0 {
		a.cpus = 4
	}
	if a.mem == 0 {
		a.mem = 4096
	}
	if a.disk == 0 {
		a.disk = 10000
	}
	if a.firstPort == 0 {
		a.firstPort = cfg.FirstPort
	}
	ports := spec.Ports
	if ports == 0 {
		ports = cfg.Ports
	}
	a.lastPort = a.firstPort + ports - 1
	return a
}

// URLs are the nodes' addresses, each with the base path.
func (s *Sim) URLs() []string {
	var out []string
	for _, nd := range s.nodes {
		out = append(out, "http://"+nd.addr+s.cfg.BasePath)
	}
	return out
}

// Now is the simulator's time.
func (s *Sim) Now() time.Time { return s.engine.now() }

// Journal returns what has happened after the entry with the given number.
func (s *Sim) Journal(after int) []Entry { return s.journal.since(after) }

// CreateApp posts an app, as an operator would, past nodes and faults. app is
// JSON, or anything that becomes JSON.
func (s *Sim) CreateApp(app any) error { return s.asOperator(http.MethodPost, "/v2/apps", app) }

// UpdateApp patches an app as an operator, over the head of any deployment if
// force is set.
func (s *Sim) UpdateApp(id string, patch any, force bool) error {
	path := "/v2/apps" + absoluteID(id)
	if force {
		path += "?force=true"
	}
	return s.asOperator(http.MethodPatch, path, patch)
}

// DeleteApp deletes an app as an operator.
func (s *Sim) DeleteApp(id string) error {
	return s.asOperator(http.MethodDelete, "/v2/apps"+absoluteID(id), nil)
}

// asOperator carries a call out in the engine itself. While there is no
// leader it waits for one.
func (s *Sim) asOperator(method, target string, body any) error {
	var data []byte
	switch b := body.(type) {
	case nil:
	case string:
		data = []byte(b)
	case []byte:
		data = b
	default:
		var err error
		if data, err = json.Marshal(b); err != nil {
			return err
		}
	}
	r, err := http.NewRequest(method, "http://operator"+target, nil)
	if err != nil {
		return err
	}
	r.RemoteAddr = "127.0.0.1:1"
	result := make(chan error, 1)
	if !s.engine.post(func() {
		s.engine.whenLeading(func() {
			resp := s.route(newRequest(r, r.URL.Path, data))
			if resp.status >= 300 {
				result <- fmt.Errorf("marathonsim: %s %s: %d %s", method, target, resp.status, resp.bytes())
				return
			}
			result <- nil
		})
	}) {
		return errors.New("marathonsim: closed")
	}
	select {
	case err := <-result:
		return err
	case <-s.engine.stopped:
		return errors.New("marathonsim: closed")
	}
}

// Close ends the simulator: its nodes, its tasks and what those have forked
// away.
func (s *Sim) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.leading = nil
	s.mu.Unlock()
	for _, nd := range s.nodes {
		nd.crash()
	}
	if s.control != nil {
		s.control.Close()
	}
	s.engine.shutdown()
	for _, nd := range s.nodes {
		nd.handlers.Wait()
	}
	s.background.Wait()
	s.claim.Close()
}
