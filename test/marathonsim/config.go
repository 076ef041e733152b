package marathonsim

import (
	"os"
	"time"
)

// A Range is a duration between two bounds, sampled evenly.
type Range struct{ Min, Max time.Duration }

// A Config says which Marathon is to be simulated. Its zero value is a 1.9
// with three nodes and two agents, that takes its time as a real one does.
// All durations are of the simulator's clock.
type Config struct {
	// Profile is the version of Marathon: 1.4, 1.5, 1.6, 1.7, 1.8 or 1.9,
	// which is the default.
	Profile string
	// Seed makes the run repeatable, as far as processes and networks are.
	// Default: drawn, and to be read from Sim.Seed.
	Seed uint64
	// Speed is how much faster than the wall the simulator's clock goes.
	// Default 1. Processes, and so also what they need to start and to end,
	// are not faster.
	Speed float64

	// Nodes is the number of API nodes. Default 3.
	Nodes int
	// Listen are the nodes' addresses, on loopback. Default: an address of the
	// simulator's own and free ports. When it is given, Nodes is its length.
	Listen []string
	// ControlListen is the address of the control server. Default: as above.
	ControlListen string
	// BasePath is in front of every path of the API, as behind the admin
	// router of DC/OS: "/service/marathon".
	BasePath string
	// Auth is what requests must carry. Default: nothing.
	Auth Auth

	// Agents is the number of agents. Default 2.
	Agents int
	// AgentSpecs describes agents one by one; then Agents is its length.
	AgentSpecs []AgentSpec
	// FirstPort and Ports are the range of ports that every agent offers.
	// Default 31000 and 20: few, so that ports come back soon.
	FirstPort, Ports int
	// Dir holds the sandboxes. Default: a temporary directory that Close
	// removes.
	Dir string
	// Path is PATH for the tasks. Default: that of the simulator.
	Path string
	// TaskKilling is --enable_features task_killing.
	TaskKilling bool
	// MaxRunningDeployments is --max_running_deployments. Default 100.
	MaxRunningDeployments int

	// OfferInterval is the time between two rounds of offers. Default 1s.
	OfferInterval time.Duration
	// ReviveInterval is --min_revive_offers_interval. Default: the profile's,
	// 5s, or 30s for 1.8.
	ReviveInterval time.Duration
	// LaunchDelay passes between an accepted offer and the process. Default
	// 300ms to 2s.
	LaunchDelay Range
	// EventDelay is by how much every event is late, for each consumer and
	// each event, and what the API shows as well. Default 0 to 50ms.
	EventDelay Range
	// ElectionGap is how long there is no leader. Default 1s to 3s.
	ElectionGap Range
	// NodeRestart is how long a node that gave up leadership is away. Default
	// 5s.
	NodeRestart time.Duration
	// AbdicateDelay passes between the answer to DELETE /v2/leader and the end
	// of that leader. Default 500ms.
	AbdicateDelay time.Duration
	// Heartbeat is the time between two heartbeats of an event stream. Default
	// 10s.
	Heartbeat time.Duration
	// KillRetry is after what time a kill is ordered again. Default 30s.
	KillRetry time.Duration
	// ScaleAppsInterval is --scale_apps_interval. Default 5m.
	ScaleAppsInterval time.Duration
	// ExpungeInterval is how often unreachable instances are looked through.
	// Default 30s.
	ExpungeInterval time.Duration
	// LaunchConfirmTimeout is --task_launch_confirm_timeout. Default 5m.
	LaunchConfirmTimeout time.Duration

	// Log gets every entry of the journal. It is called under a lock and must
	// not call the simulator.
	Log func(Entry)

	subnet          int
	removeSandboxes bool
}

// An AgentSpec is one agent. What is zero has a default.
type AgentSpec struct {
	// Hostname is what task.host says. Default: the agent's address.
	Hostname string
	// Attributes are for constraints; region and zone are shown at the tasks.
	Attributes map[string]string
	// CPUs, Mem (MiB) and Disk (MiB) are the resources. Default 4, 4096, 10000.
	CPUs, Mem, Disk float64
	// FirstPort and Ports are the range of ports. Default: those of the Config.
	FirstPort, Ports int
}

// Auth is what requests must carry.
type Auth struct {
	// User and Password are for --http_credentials. All of the API wants them,
	// /ping too.
	User, Password string
	// Token is what DC/OS sends as "Authorization: token=...".
	Token string
	// Denied are apps, or groups with a trailing slash, that the caller must
	// not see or touch: 403, and left out of lists.
	Denied []string
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	rng := func(r *Range, lo, hi time.Duration) {
		if *r == (Range{}) {
			*r = Range{lo, hi}
		}
	}
	if len(c.Listen) > 0 {
		c.Nodes = len(c.Listen)
	}
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.FirstPort == 0 {
		c.FirstPort = 31000
	}
	if c.Ports == 0 {
		c.Ports = 20
	}
	if c.Agents == 0 {
		c.Agents = 2
	}
	if len(c.AgentSpecs) == 0 {
		c.AgentSpecs = make([]AgentSpec, c.Agents)
	}
	if c.Path == "" {
		c.Path = os.Getenv("PATH")
	}
	if c.MaxRunningDeployments == 0 {
		c.MaxRunningDeployments = maxRunningDeployments
	}
	if c.Speed <= 0 {
		c.Speed = 1
	}
	def(&c.OfferInterval, time.Second)
	rng(&c.LaunchDelay, 300*time.Millisecond, 2*time.Second)
	rng(&c.EventDelay, 0, 50*time.Millisecond)
	rng(&c.ElectionGap, time.Second, 3*time.Second)
	def(&c.NodeRestart, 5*time.Second)
	def(&c.AbdicateDelay, 500*time.Millisecond)
	def(&c.Heartbeat, 10*time.Second)
	def(&c.KillRetry, 30*time.Second)
	def(&c.ScaleAppsInterval, 5*time.Minute)
	def(&c.ExpungeInterval, 30*time.Second)
	def(&c.LaunchConfirmTimeout, 5*time.Minute)
}
