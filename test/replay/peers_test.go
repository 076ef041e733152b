package main

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// The rows are computed by hand from the published rule.
func TestWaiterStepsAsPublished(t *testing.T) {
	for _, c := range []struct {
		name               string
		total, outstanding int
		target             float64
		concurrency        int
		up, down, jitter   float64
		ticks, least       int
		change             int
		next               float64
	}{
		{"half way", 10, 20, 10, 1, 0.5, 0.5, 0.9, 1, 1, 5, 15},
		{"two ticks", 0, 20, 0, 1, 0.5, 0.5, 0.9, 2, 0, 15, 15},
		{"the whole way", 5, 10, 5, 1, 0.999, 0.999, 0.9, 1, 1, 5, 10},
		{"at the maximum", 50, 100, 50, 1, 0.5, 0.5, 0.9, 1, 1, 0, 50},
		{"at the minimum", 1, 0, 1, 1, 0.5, 0.5, 0.9, 1, 1, 0, 1},
		{"jitter not met", 1, 2, 1, 1, 0.89, 0.5, 0.9, 1, 1, 0, 1.89},
		{"jitter met", 1, 2, 1, 1, 0.91, 0.5, 0.9, 1, 1, 1, 1.91},
		{"down", 2, 1, 2, 1, 0.5, 1, 0.9, 1, 1, -1, 1},
		{"down, but not yet", 2, 1, 2, 1, 0.5, 0.98, 0.9, 1, 1, 0, 1.02},
		{"five slots each", 2, 50, 2, 5, 0.5, 0.5, 0.9, 1, 1, 4, 6},
	} {
		next, change := waiterStep(c.outstanding, c.concurrency, c.total, c.target, c.up, c.down, c.jitter, c.ticks, c.least, 50)
		if change != c.change || math.Abs(next-c.next) > 0.011 {
			t.Errorf("%s: %+d to %v, want %+d to %v", c.name, change, next, c.change, c.next)
		}
	}
}

func TestRelayWeighsThePastAsWritten(t *testing.T) {
	for _, c := range []struct {
		errors []float64
		weight float64
	}{
		{[]float64{20, 15, 10, 5}, -0.2},
		{[]float64{0, 0, 0, 8}, 1.0 / 3},
		{[]float64{0, 0, 0, 8, 8}, 0.2361},
		{[]float64{5, -5, 5, -5, 5}, 0.1604},
		{[]float64{20, 15, 10, 5, 0, 0}, -0.1629},
		{[]float64{7, 7, 7, 7, 7, 7, 7}, 1},
	} {
		h := &relayHistory{errors: c.errors}
		if w := h.weight(); math.Abs(w-c.weight) > 1e-4 {
			t.Errorf("%v: %.4f, want %.4f", c.errors, w, c.weight)
		}
	}
}

// The window slides without a new transform; that must come to the same.
func TestRelaysSlidingTransformIsTheWholeOne(t *testing.T) {
	h := new(relayHistory)
	for k := range relayLookback + 300 {
		h.push(float64(k*k%17) - 5)
	}
	fresh := &relayHistory{errors: slices.Clone(h.errors)}
	if a, b := h.weight(), fresh.weight(); math.Abs(a-b) > 1e-6 {
		t.Errorf("%v, want %v", a, b)
	}
}

// With 7 slots in use of 10 the target is 70 for 100.
func TestKPADecidesAsKnative(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name              string
		stable, panicking float64
		ready             int
		panicAt           time.Time
		panicMax          int
		want              int
		panics            bool
	}{
		{"steady", 14, 14, 2, time.Time{}, 0, 2, false},
		{"rounds up", 14.1, 14.1, 2, time.Time{}, 0, 3, false},
		{"a burst is panic", 7, 28, 2, time.Time{}, 0, 4, true},
		{"no fewer in a panic", 7, 7, 4, now.Add(-30 * time.Second), 9, 9, true},
		{"the panic is over", 7, 7, 4, now.Add(-60 * time.Second), 9, 2, false},
		{"no faster down than by half", 0.1, 0.1, 8, time.Time{}, 0, 4, false},
		{"to zero", 0, 0, 1, time.Time{}, 0, 0, false},
	} {
		n, m := kpaMemory{panicAt: c.panicAt, panicMax: c.panicMax}.decide(now, c.stable, c.panicking, 7, c.ready)
		if n != c.want || m.panicAt.IsZero() == c.panics {
			t.Errorf("%s: %d (panic since %v), want %d", c.name, n, m.panicAt, c.want)
		}
	}
}

func TestKPAAveragesOverWhatIsKnownOfTheWindow(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	m := kpaMemory{seen: []kpaSeen{{at(0), 0}, {at(10), 50}, {at(54), 50}}}
	if got := m.mean(kpaSeen{at(60), 80}, kpaStable); math.Abs(got-80.0/60) > 1e-9 {
		t.Errorf("over a minute: %v", got)
	}
	if got := m.mean(kpaSeen{at(60), 80}, kpaPanic); got != 5 {
		t.Errorf("over six seconds: %v", got)
	}
	if got := m.mean(kpaSeen{at(20), 50}, kpaStable); got != 2.5 {
		t.Errorf("of a window that has just begun: %v", got)
	}
}

func TestHPAStepsAsKubernetes(t *testing.T) {
	for _, c := range []struct {
		mean    float64
		current int
		want    int
	}{
		{7, 1, 1}, {14, 1, 2}, {14.7, 2, 2}, {15.5, 2, 3}, {280, 2, 6}, {280, 10, 20}, {0, 3, 1},
	} {
		if n := hpaStep(c.mean, 7, c.current); n != c.want {
			t.Errorf("mean %v with %d: %d, want %d", c.mean, c.current, n, c.want)
		}
	}
}

func TestKeepAliveHoldsEachInstanceByItself(t *testing.T) {
	p, at := keepAlive{time.Minute}, func(s int) time.Time { return time.Unix(int64(s), 0) }
	a, m := p.Target(scaler.Inputs{Now: at(0), Max: 9, Concurrency: 2, Demand: 5}, nil)
	if a.Target != 3 || a.Mark != 6 {
		t.Fatalf("5 requests at 2 each: %+v", a)
	}
	a, m = p.Target(scaler.Inputs{Now: at(30), Max: 9, Concurrency: 2, Demand: 1, Running: 3}, m)
	if a.Target != 3 {
		t.Fatalf("after half a minute: %+v", a)
	}
	a, m = p.Target(scaler.Inputs{Now: at(61), Max: 9, Concurrency: 2, Demand: 0, Running: 3, IdleSince: at(40)}, m)
	if a.Target != 1 || !a.Recheck.Equal(at(100)) {
		t.Fatalf("after a minute: %+v", a)
	}
	if a, _ = p.Target(scaler.Inputs{Now: at(100), Max: 9, Concurrency: 2, Running: 1, IdleSince: at(40)}, m); a.Target != 0 {
		t.Fatalf("a minute after the last request: %+v", a)
	}
}

func TestHybridHistogramWindows(t *testing.T) {
	m := hybridMemory{bins: new([hybridBins]int)}
	if load, stay := m.windows(); load != 0 || stay != 4*time.Hour {
		t.Errorf("without knowledge: %v, %v", load, stay)
	}
	for range 100 {
		m = m.learn(30*time.Minute + 10*time.Second)
	}
	if load, stay := m.windows(); load != 27*time.Minute || (load+stay).Round(time.Second) != 34*time.Minute+6*time.Second {
		t.Errorf("each half hour: %v, %v", load, stay)
	}
	far := hybridMemory{bins: new([hybridBins]int)}
	far = far.learn(10 * time.Hour)
	if load, stay := far.windows(); load != 510*time.Minute || stay != 180*time.Minute {
		t.Errorf("beyond the range: %v, %v", load, stay)
	}
	flat := hybridMemory{bins: new([hybridBins]int)}
	for k := range hybridBins {
		flat = flat.learn(time.Duration(k) * time.Minute)
	}
	if load, stay := flat.windows(); load != 0 || stay != 4*time.Hour {
		t.Errorf("without a pattern: %v, %v", load, stay)
	}
}

func TestOracleBridgesShortPausesOnly(t *testing.T) {
	s := func(n float64) time.Duration { return seconds(n) }
	tr := Trace{Concurrency: 1, Length: s(100), Requests: []Request{{s(10), s(2)}, {s(11), s(3)}, {s(16), s(1)}, {s(60), s(1)}}}
	r := oracle(tr, s(5))
	// Level 1: 10 to 14, 2 s bridged, 16 to 17, 60 to 61; level 2: 11 to 12;
	// three starts of 5 s.
	if r.Starts != 3 || r.Peak != 2 || r.Instances != s(3*5+4+2+1+1+1) || r.Idle != s(2) {
		t.Errorf("%+v", r)
	}
}

// One request of 2 s and a start of 1 s: it waits for that second, and the
// instance exists from its start to its end after five minutes.
func TestTheWorldMeasuresWhatHappens(t *testing.T) {
	tr := Trace{Name: "one", Concurrency: 1, Length: time.Hour, Requests: []Request{{time.Minute, 2 * time.Second}}}
	r := replay(t, tr, Setup{Policy: plain(keepAlive{5 * time.Minute}), StartTime: time.Second, Seed: 1})
	started := r.Waits.longest
	if r.Cold != 1 || r.Starts != 1 || r.Peak != 1 || r.Turns != 1 {
		t.Errorf("%+v", r)
	}
	if started < 500*time.Millisecond || started > 2*time.Second {
		t.Errorf("the start took %v", started)
	}
	if idle := r.Instances - started - 2*time.Second; r.Idle != idle || idle < 4*time.Minute || idle > 5*time.Minute {
		t.Errorf("it was idle for %v of %v", r.Idle, r.Instances)
	}
}

func TestTheSeedRepeatsARun(t *testing.T) {
	tr := bursts(7)[0]
	run := func() Result {
		return replay(t, tr, Setup{Policy: plain(keepAlive{5 * time.Minute}), StartTime: 5 * time.Second, Seed: 3})
	}
	if a, b := run(), run(); a.Starts != b.Starts || a.Waits.count != b.Waits.count || a.Peak != b.Peak {
		t.Errorf("%d starts, peak %d; then %d, %d", a.Starts, a.Peak, b.Starts, b.Peak)
	}
}

// A request of a trace neither gets lost nor comes twice.
func TestEveryRecordingCanBeRead(t *testing.T) {
	all, err := recorded(1)
	if err != nil {
		t.Fatal(err)
	}
	families := make(map[string]int)
	for _, tr := range all {
		families[tr.Family] += len(tr.Requests)
		for k, r := range tr.Requests {
			if r.At < 0 || r.At > tr.Length || r.Service <= 0 || k > 0 && r.At < tr.Requests[k-1].At {
				t.Fatalf("%s: request %d is %+v", tr.Name, k, r)
			}
		}
	}
	for _, f := range []string{"azure", "web", "social", "llm"} {
		if families[f] < 1000 {
			t.Errorf("%s has %d requests", f, families[f])
		}
	}
}
