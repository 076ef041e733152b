package e2emarathon

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

// TestSoak lets everything go wrong at once, at a rate drawn from a seed,
// under load that comes and goes. Afterwards no client was answered by another
// app, no slot is taken, and the books are equal.
//
//	go test ./test/e2emarathon -run TestSoak -soak 2m -seed 42
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d; -seed %d repeats the run", seed, seed)
	cfg := brisk()
	cfg.Seed = seed
	cfg.Ports = 10
	w := newTown(t, cfg)
	services := []string{"one", "two", "three"}
	var site strings.Builder
	site.WriteString("log\n")
	for _, s := range services {
		w.app("/soak/"+s, "")
		fmt.Fprintf(&site, "handle /%s/* {\n\turi strip_prefix /%s\n%s\n}\n", s, s, harness.Usher(s, w.backend("/soak/"+s),
			"instances 0 3", "concurrency 4", "idle_timeout 1s", "wait_timeout 20s", "drain_timeout 5s", "scale queue {\n\tdown_window 500ms\n}"))
	}
	w.Start(harness.Config{Site: site.String()})

	for _, f := range []marathonsim.Fault{
		{Kind: marathonsim.FaultLatency, Rate: 0.05, Delay: 300 * time.Millisecond},
		{Kind: marathonsim.FaultStatus, Rate: 0.03, Status: http.StatusInternalServerError},
		{Kind: marathonsim.FaultStatus, Rate: 0.02, Status: http.StatusServiceUnavailable},
		{Kind: marathonsim.FaultReset, Rate: 0.03},
		{Kind: marathonsim.FaultTruncate, Rate: 0.02},
		{Kind: marathonsim.FaultSlowBody, Rate: 0.02, Delay: 20 * time.Millisecond},
		{Kind: marathonsim.FaultHang, Rate: 0.002},
		{Kind: marathonsim.FaultStale, Rate: 0.1, Delay: 2 * time.Second},
		{Kind: marathonsim.FaultEventLost, Rate: 0.1},
		{Kind: marathonsim.FaultEventTwice, Rate: 0.1},
		{Kind: marathonsim.FaultEventLate, Rate: 0.1, Delay: time.Second},
		{Kind: marathonsim.FaultUnknownEvent, Rate: 0.1},
		{Kind: marathonsim.FaultTruncatedFrame, Rate: 0.01},
		{Kind: marathonsim.FaultCrash, Rate: 0.1},
		{Kind: marathonsim.FaultExitZero, Rate: 0.02},
		{Kind: marathonsim.FaultSlowTerm, Rate: 0.2, Delay: 500 * time.Millisecond},
		{Kind: marathonsim.FaultDies, Rate: 0.05, Delay: 2 * time.Second},
		{Kind: marathonsim.FaultPortsReused},
	} {
		w.sim.Inject(f)
	}
	stop := w.sim.Chaos(map[string]time.Duration{
		marathonsim.ChaosTaskDies: 4 * time.Second, marathonsim.ChaosPartition: 15 * time.Second,
		marathonsim.ChaosAgentLost: 20 * time.Second, marathonsim.ChaosAbdicate: 20 * time.Second,
		marathonsim.ChaosStandbyDown: 15 * time.Second, marathonsim.ChaosStreamsDropped: 6 * time.Second,
		marathonsim.ChaosStreamsSilent: 20 * time.Second, marathonsim.ChaosForeignLock: 15 * time.Second,
		marathonsim.ChaosOperatorScale: 10 * time.Second, marathonsim.ChaosOperatorUpgrade: 15 * time.Second,
		marathonsim.ChaosNoOffers: 15 * time.Second,
	})

	rng := rand.New(rand.NewPCG(seed, 1))
	answers := make(map[string][]harness.Response)
	for began := time.Now(); time.Since(began) < *soakFor; {
		loads := make(map[string]*harness.Load)
		for _, s := range services {
			if n := rng.IntN(12); n > 2 {
				loads[s] = w.Load(n, "/"+s+"/sleep?d=10ms")
			}
		}
		time.Sleep(time.Second + time.Duration(rng.Int64N(int64(2*time.Second))))
		for s, l := range loads {
			answers[s] = append(answers[s], l.Stop()...)
		}
	}
	stop()
	w.sim.ClearFaults()
	// What goes wrong for a while ends by itself.
	for _, s := range services {
		wantFrom(t, answers[s], "soak_"+s+".")
		tally := make(map[string]int)
		for _, r := range answers[s] {
			why := fmt.Sprint(r.Status, " ", r.UsherError())
			if r.Status == http.StatusServiceUnavailable {
				why += ": " + strings.TrimSpace(r.Body)
			}
			tally[why]++
			if r.Status == http.StatusServiceUnavailable && r.UsherError() == "" {
				t.Errorf("%s: a 503 that is not Usher's: %q", s, r.Body)
			}
		}
		t.Logf("%s: %v", s, tally)
	}
	// Every service works again, and goes back to sleep.
	for _, s := range services {
		harness.Eventually(t, time.Minute, func() bool { return w.Get("/"+s+"/").Status == http.StatusOK }, "%s serves again", s)
	}
	for _, s := range services {
		harness.Eventually(t, time.Minute, func() bool {
			now := w.Service(s)
			return len(now.InstanceList) == 0 && now.Slots.InUse == 0 && now.Waiting == 0 && len(w.running("/soak/"+s)) == 0
		}, "%s sleeps: %+v, the simulator runs %v", s, w.Service(s).Instances, w.running("/soak/"+s))
	}
	w.never()
}
