package marathonsim

import (
	"encoding/json"
	"math/rand/v2"
	"time"
)

// The accidents that can happen by themselves, at a rate.
const (
	ChaosTaskDies        = "task_dies"
	ChaosPartition       = "partition"  // of one agent, for 1 to 6 seconds
	ChaosAgentLost       = "agent_lost" // for 1 to 6 seconds
	ChaosAbdicate        = "abdicate"
	ChaosStandbyDown     = "standby_down" // for 1 to 6 seconds
	ChaosStreamsDropped  = "streams_dropped"
	ChaosStreamsSilent   = "streams_silent"
	ChaosForeignLock     = "foreign_lock"     // of one app, for 1 to 6 seconds
	ChaosOperatorScale   = "operator_scale"   // of one app, to 0 to 3
	ChaosOperatorUpgrade = "operator_upgrade" // a label of one app changes
	ChaosNoOffers        = "no_offers"        // for 1 to 6 seconds
)

// Chaos lets accidents happen, each on average once in the given time, at
// moments drawn from the seed, until the returned function is called. They
// happen beside the faults that are injected.
func (s *Sim) Chaos(every map[string]time.Duration) (stop func()) {
	rng := rand.New(rand.NewPCG(s.Seed, 0xc4a05))
	e := s.engine
	running := true
	var timers []*timer
	e.do(func() {
		for _, kind := range sortedKeys(every) {
			var again func()
			again = func() {
				timers = append(timers, e.after(time.Duration(rng.ExpFloat64()*float64(every[kind])), func() {
					if running {
						e.log("chaos", "", "", "%s", kind)
						s.accident(kind, rng)
						again()
					}
				}))
			}
			again()
		}
	})
	return func() {
		e.do(func() {
			running = false
			for _, t := range timers {
				t.stop()
			}
		})
	}
}

// accident happens in the engine's goroutine. What it takes away it gives
// back after a while, also when the chaos has been stopped.
func (s *Sim) accident(kind string, rng *rand.Rand) {
	e := s.engine
	while := time.Second + time.Duration(rng.Int64N(int64(5*time.Second)))
	a := e.agents[rng.IntN(len(e.agents))]
	app := ""
	if ids := sortedKeys(e.root); len(ids) > 0 {
		app = ids[rng.IntN(len(ids))]
	}
	operator := func(patch any) {
		if app == "" {
			return
		}
		body, _ := json.Marshal(patch)
		e.whenLeading(func() {
			s.route(&request{method: "PATCH", path: "/v2/apps" + app, body: body, client: "127.0.0.1"})
		})
	}
	switch kind {
	case ChaosTaskDies:
		if ids := sortedKeys(e.tasks); len(ids) > 0 {
			if t := e.tasks[ids[rng.IntN(len(ids))]]; t.proc != nil {
				t.proc.signal(sigkill)
			}
		}
	case ChaosPartition:
		e.partition(a)
		e.after(while, func() { e.heal(a) })
	case ChaosAgentLost:
		e.lose(a)
		e.after(while, func() { e.heal(a) })
	case ChaosAbdicate:
		if l := s.leader(); l != nil {
			s.background.Go(func() { s.crashLeader(l) })
		}
	case ChaosStandbyDown:
		nd := s.nodes[rng.IntN(len(s.nodes))]
		if nd != s.leader() {
			s.background.Go(nd.crash)
			s.restartLater(nd, while)
		}
	case ChaosStreamsDropped:
		s.DropStreams()
	case ChaosStreamsSilent:
		s.SilenceStreams()
	case ChaosForeignLock:
		if d := e.hold(app); d != nil {
			e.after(while, d.release)
		}
	case ChaosOperatorScale:
		operator(map[string]any{"instances": rng.IntN(4)})
	case ChaosOperatorUpgrade:
		operator(map[string]any{"labels": map[string]any{"edited": stamp(e.now())}})
	case ChaosNoOffers:
		remove := s.Inject(Fault{Kind: FaultNoOffers})
		e.after(while, remove)
	}
}
