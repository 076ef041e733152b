package hub

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// splitOf makes a split between the services of a configuration.
func splitOf(t testing.TB, h *Hub, onFailing string, sides ...SplitSide) *Split {
	t.Helper()
	s, err := h.NewSplit("shop", SplitConfig{Sides: sides, OnFailing: onFailing}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testHub(t testing.TB) *Hub {
	t.Helper()
	h := newHub()
	t.Cleanup(h.cancel)
	return h
}

// shares counts which sides the values 0 to n-1 get.
func shares(s *Split, n int) []int {
	counts := make([]int, len(s.sides))
	for k := range n {
		counts[s.Choose(HashOf(fmt.Sprint("user", k)), 0)]++
	}
	return counts
}

func TestSidesGetRequestsInProportionToTheirWeights(t *testing.T) {
	t.Parallel()
	const n = 100_000
	for _, weights := range [][]int{{90, 10}, {1, 1, 1}, {0, 1}, {999_999, 1}, {5, 0, 15, 80}} {
		var sides []SplitSide
		sum := 0
		for k, w := range weights {
			sides = append(sides, SplitSide{Service: fmt.Sprint("v", k), Weight: w})
			sum += w
		}
		for k, got := range shares(splitOf(t, testHub(t), "", sides...), n) {
			want := float64(weights[k]) / float64(sum)
			// Five times the standard deviation.
			if off := math.Abs(float64(got)/n - want); off > 5*math.Sqrt(want*(1-want)/n) {
				t.Errorf("weights %v: side %d gets %d of %d", weights, k, got, n)
			}
		}
	}
}

// Changed weights move only the values that have to move: with a greater weight,
// to that side, and with a smaller one, away from it.
func TestChangedWeightsMoveOnlyWhatHasToMove(t *testing.T) {
	t.Parallel()
	const n = 20_000
	h := testHub(t)
	s := splitOf(t, h, "", SplitSide{"v1", 80}, SplitSide{"v2", 10}, SplitSide{"v3", 10})
	before := make([]int, n)
	for k := range n {
		before[k] = s.Choose(HashOf(fmt.Sprint("user", k)), 0)
	}
	s.use(&SplitWeights{Weights: map[string]int{"v1": 80, "v2": 35, "v3": 10}})
	moved := 0
	for k := range n {
		now := s.Choose(HashOf(fmt.Sprint("user", k)), 0)
		if now == before[k] {
			continue
		}
		if moved++; now != 1 {
			t.Fatalf("user%d goes from side %d to side %d, and only side 1 has got more", k, before[k], now)
		}
	}
	// v2 has 28 % of the whole in place of 10 %.
	if share := float64(moved) / n; math.Abs(share-.18) > .015 {
		t.Errorf("%.3f of the values have moved, want 0.18", share)
	}
}

// Two splits with the same sides do not put the same people into both canaries.
func TestSplitsAreIndependentOfEachOther(t *testing.T) {
	t.Parallel()
	const n = 20_000
	h := testHub(t)
	sides := []SplitSide{{"v1", 90}, {"v2", 10}}
	a := splitOf(t, h, "", sides...)
	b, err := h.NewSplit("search", SplitConfig{Sides: sides}, nil)
	if err != nil {
		t.Fatal(err)
	}
	both := 0
	for k := range n {
		hash := HashOf(fmt.Sprint("user", k))
		if a.Choose(hash, 0) == 1 && b.Choose(hash, 0) == 1 {
			both++
		}
	}
	if share := float64(both) / n; math.Abs(share-.01) > .004 {
		t.Errorf("%.4f of the users are in both canaries, want 0.01", share)
	}
}

// If a side is left out, its requests are divided between the others by their
// weights, and the requests of the others stay.
func TestTheNextSideIsFoundInTheOrderOfTheHash(t *testing.T) {
	t.Parallel()
	s := splitOf(t, testHub(t), "next", SplitSide{"v1", 60}, SplitSide{"v2", 30}, SplitSide{"v3", 10}, SplitSide{"v4", 0})
	counts := make([]int, 4)
	for k := range 40_000 {
		hash := HashOf(fmt.Sprint("user", k))
		first := s.Choose(hash, 0)
		next := s.Choose(hash, 1<<first)
		if next == first || next == 3 {
			t.Fatalf("user%d: after side %d comes side %d", k, first, next)
		}
		if without := s.Choose(hash, 1<<next); without != first {
			t.Fatalf("user%d goes to side %d because side %d is left out", k, without, next)
		}
		if first == 0 {
			counts[next]++
		}
	}
	if ratio := float64(counts[1]) / float64(counts[2]); math.Abs(ratio-3) > .3 {
		t.Errorf("the requests of a side that cannot serve go to the others as %.2f to 1, want 3 to 1", ratio)
	}
	if s.Choose(1, 0b0111) != -1 {
		t.Error("a side without weight is chosen")
	}
}

// The hash is part of the contract between the Caddys of a cluster, and over
// restarts: it must not depend on the process.
func TestTheChoiceIsTheSameInEveryProcess(t *testing.T) {
	t.Parallel()
	s := splitOf(t, testHub(t), "", SplitSide{"v1", 1}, SplitSide{"v2", 1})
	var got strings.Builder
	for k := range 32 {
		fmt.Fprint(&got, s.Choose(HashOf(fmt.Sprint("user", k)), 0))
	}
	if want := "01100111001111010011010111001101"; got.String() != want {
		t.Errorf("%s, want %s", got.String(), want)
	}
}

func TestChoosingASideAllocatesNothing(t *testing.T) {
	s := splitOf(t, testHub(t), "", SplitSide{"v1", 90}, SplitSide{"v2", 10})
	var hash uint64
	if n := testing.AllocsPerRun(1000, func() {
		hash++
		if _, made := s.Find(s.Choose(hash, 0)); made != nil {
			t.Error("there is a service")
		}
		s.Count(0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{2, 8, 32} {
		var sides []SplitSide
		for k := range n {
			sides = append(sides, SplitSide{fmt.Sprint("v", k), 10})
		}
		s := splitOf(b, testHub(b), "", sides...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for k := 0; b.Loop(); k++ {
				s.Choose(uint64(k), 0)
			}
		})
	}
}

func TestSplitsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	many := make([]SplitSide, MostSplitSides+1)
	for k := range many {
		many[k] = SplitSide{fmt.Sprint("v", k), 1}
	}
	two := []SplitSide{{"v1", 1}, {"v2", 1}}
	for want, c := range map[string]SplitConfig{
		"at least two services":             {Sides: two[:1]},
		"at most 32":                        {Sides: many},
		"v1 is given twice":                 {Sides: []SplitSide{{"v1", 1}, {"v1", 2}}},
		"shop is the name of the split":     {Sides: []SplitSide{{"v1", 1}, {"shop", 2}}},
		"of the split itself":               {Sides: []SplitSide{{"v1", 1}, {"shop@2", 2}}},
		"all weights are 0":                 {Sides: []SplitSide{{"v1", 0}, {"v2", 0}}},
		"the weight of v2 is -1":            {Sides: []SplitSide{{"v1", 1}, {"v2", -1}}},
		"the weight of v2 is 1000001":       {Sides: []SplitSide{{"v1", 1}, {"v2", 1_000_001}}},
		"'v2@0' names no revision":          {Sides: []SplitSide{{"v1", 1}, {"v2@0", 1}}},
		"'v2@02' names no revision":         {Sides: []SplitSide{{"v1", 1}, {"v2@02", 1}}},
		"'V2'":                              {Sides: []SplitSide{{"v1", 1}, {"V2", 1}}},
		"on_failing 'never' is unknown":     {Sides: two, OnFailing: "never"},
		"is not one placeholder":            {Sides: two, By: "uid"},
		"has no value when a request comes": {Sides: two, By: "{http.response.header.X}"},
		"{env.X} does not tell requests":    {Sides: two, By: "{env.X}"},
	} {
		if err := c.WithDefaults().Validate("shop"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestASplitWithoutItsServicesIsRefused(t *testing.T) {
	t.Parallel()
	h := testHub(t)
	d := &Definition{Place: "the Caddyfile"}
	for want, c := range map[string]struct {
		sides       []SplitSide
		definitions []string
		made        bool
	}{
		"":                            {[]SplitSide{{"v1", 1}, {"v2", 1}}, []string{"v1", "v2"}, false},
		"shop is a split, and also":   {[]SplitSide{{"v1", 1}, {"v2", 1}}, []string{"v1", "v2", "shop"}, false},
		"service v2 is not defined":   {[]SplitSide{{"v1", 1}, {"v2", 1}}, []string{"v1"}, false},
		"v1@2 is no service":          {[]SplitSide{{"v1", 1}, {"v1@2", 1}}, []string{"v1"}, true},
		"service v1@2 is not defined": {[]SplitSide{{"v1@2", 1}, {"v2", 1}}, []string{"v2"}, false},
	} {
		g := &Generation{Definitions: make(map[string]*Definition), Splits: map[string]*Split{"shop": splitOf(t, h, "", c.sides...)}, Logger: zap.NewNop()}
		for _, name := range c.definitions {
			g.Definitions[name] = d
		}
		if c.made {
			g.Made = new(MadeRules)
		}
		err := CheckSplits(g)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
