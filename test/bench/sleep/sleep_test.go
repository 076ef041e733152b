package sleep

import (
	"flag"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

var (
	services  = flag.Int("services", 1000, "how many services there are")
	attribute = flag.Bool("attribute", false, "tell where the memory is, which takes minutes")
)

func TestMain(m *testing.M) { harness.Main(m) }

// bytesPerService is what a service may cost: the budget is for a thousand.
const bytesPerService = Budget / 1000

func measure(t *testing.T, cfg Config) Result {
	t.Helper()
	if harness.Race {
		t.Skip("the race detector keeps memory of its own")
	}
	cfg.Caddy = harness.Build(t).Caddy
	res, err := Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", res)
	return res
}

func TestSleepingServicesTakeLittleMemoryAlsoAfterReloads(t *testing.T) {
	res := measure(t, Config{Services: *services, Reloads: 4, Attribute: *attribute, App: harness.Build(t).App})
	loaded, reloaded := res.Memory()
	limit := int64(bytesPerService * res.Services)
	if loaded > limit {
		t.Errorf("%d services cost %d bytes, more than %d", res.Services, loaded, limit)
	}
	if !*attribute && reloaded > limit {
		t.Errorf("after the reloads %d services cost %d bytes, more than %d", res.Services, reloaded, limit)
	}
	if *attribute {
		return
	}
	if known := res.KnownMemory(); known > limit {
		t.Errorf("%d services of which the policy knows requests cost %d bytes, more than %d", res.Services, known, limit)
	}
	for what, s := range map[string]State{"were asked for": res.Usher.Asked, "were asked for before a restart": res.Usher.Restarted} {
		if more := s.Goroutines - res.Usher.Reloaded.Goroutines; more > res.Services/10 {
			t.Errorf("%d services that %s have %d goroutines", res.Services, what, more)
		}
	}
}

func TestSleepingServicesHaveNoGoroutinesAndNoTimers(t *testing.T) {
	if testing.Short() {
		t.Skip("recording every allocation makes Caddy slow")
	}
	// Those of Usher as a whole are few; one for each service would be more.
	const n, few = 50, 10
	res := measure(t, Config{Services: n, Attribute: true})
	if res.Goroutines() > few {
		t.Errorf("%d services have %d goroutines", n, res.Goroutines())
	}
	if res.Timers() > few {
		t.Errorf("%d services have %d timers", n, res.Timers())
	}
	if res.Plain.Loaded.Timers < n {
		t.Errorf("timers are not seen: reverse_proxy has one for each route, but %d were counted", res.Plain.Loaded.Timers)
	}
}

func TestProfileIsReadWithItsStacks(t *testing.T) {
	const text = "heap profile: 3: 288 [9: 900] @ heap/2\n" +
		"1: 96 [4: 400] @ 0x1 0x2\n#\t0x1\ttime.newTimer+0x1d\t\t/time.go:1\n" +
		"#\t0x2\tgithub.com/caddy-usher/usher/scaler.(*Loop).decide+0x2\t/decide.go:2\n\n" +
		"2: 192 [5: 500] @ 0x3\n#\t0x3\tgithub.com/caddyserver/caddy/v2.changeConfig+0x3\t/caddy.go:3\n\n" +
		"# runtime.MemStats\n# HeapAlloc = 288\n"
	p, err := parseProfile(text)
	if err != nil {
		t.Fatal(err)
	}
	if n := p.timers(); n != 1 {
		t.Errorf("%d timers", n)
	}
	parts := difference(p, nil)
	if len(parts) != 2 || parts[0].Bytes != 192 || parts[1] != (Part{Name: "scaler.(*Loop).decide", Bytes: 96}) {
		t.Errorf("%+v", parts)
	}
}
