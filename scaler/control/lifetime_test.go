package control

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func maxRequests(n int) benchOption {
	return func(_ *bench, o *reserver.Options) { o.MaxRequests = n }
}

func TestAnInstanceIsReplacedAfterItsRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, defaults(), p, nil, maxRequests(3))
		for k := range 9 {
			r := new(reserver.Reservation)
			if has, err := b.res.Reserve(r, reserver.Ask{}); err != nil {
				t.Fatal(err)
			} else if !has {
				b.granted(r)
			}
			want := []string{"r1-1", "r1-2", "r1-3"}[k/3]
			if r.Instance().ID != want {
				t.Fatalf("request %d is on %s; want %s", k, r.Instance().ID, want)
			}
			r.Release(reserver.Answered)
		}
		time.Sleep(time.Second)
		b.is(Awake)
		b.runs(1)
	})
}

// The last request of an instance is not cut short.
func TestAnInstanceThatIsSpentFinishesWhatItHas(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.DrainTimeout = time.Second }), p, nil, maxRequests(1))
		first := b.waits()
		b.granted(first)
		second := b.waits()
		time.Sleep(10 * time.Minute)
		b.runs(1) // max is one, and the first is not through
		select {
		case <-first.Instance().Gone():
			t.Fatal("its instance was stopped")
		default:
		}
		first.Release(reserver.Answered)
		b.granted(second)
		// When it has to go for another reason there is a limit.
		b.Sleep()
		time.Sleep(2 * time.Second)
		select {
		case <-second.Instance().Gone():
		default:
			t.Fatal("an operator has put it to sleep, and its instance runs on")
		}
		second.Release(reserver.Answered)
	})
}

func TestAnInstanceIsReplacedWhenItIsOld(t *testing.T) {
	for name, c := range map[string]struct {
		overlap        Overlap
		max            int
		successorFirst bool
	}{
		"beside the old one":  {OverlapOn, 1, true},
		"within max":          {OverlapDefault, 2, true},
		"after the old one":   {OverlapOff, 1, false},
		"after it by default": {OverlapDefault, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := &platform{local: true, startTime: 10 * time.Second}
				b := newBench(t, with(func(s *Settings) {
					s.Overlap, s.Max, s.MaxAge, s.IdleTimeout = c.overlap, c.max, time.Hour, 0
				}), p, nil)
				r := b.waits()
				b.granted(r)
				r.Release(reserver.Answered)
				began := time.Now()
				served := true
				for slices.Contains(p.ids(), "r1-1") {
					time.Sleep(time.Second)
					served = served && b.res.Stats().Open > 0 || len(p.ids()) > 0 && !slices.Contains(p.ids(), "r1-1")
					if time.Since(began) > 2*time.Hour {
						t.Fatal("it was not replaced")
					}
				}
				if age := time.Since(began); age < 53*time.Minute || age > time.Hour+20*time.Second {
					t.Errorf("it was stopped after %v", age)
				}
				if has := b.res.Stats().Open > 0; has != c.successorFirst {
					t.Errorf("an instance is ready: %v\n%s", has, b.story())
				}
				time.Sleep(20 * time.Second)
				b.runs(1)
				b.is(Awake)
			})
		})
	}
}

func TestInstancesOfOneAgeAreReplacedOneAfterTheOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: time.Second}
		b := newBench(t, with(func(s *Settings) { s.Min, s.Max, s.MaxAge = 4, 5, time.Hour }), p, nil)
		time.Sleep(time.Minute)
		b.runs(4)
		first := p.ids()
		fewest := 4
		for range 70 * 60 {
			time.Sleep(time.Second)
			fewest = min(fewest, b.res.Stats().Open)
		}
		if fewest < 4 {
			t.Errorf("only %d served meanwhile", fewest)
		}
		for _, id := range p.ids() {
			if slices.Contains(first, id) {
				t.Errorf("%s was not replaced", id)
			}
		}
		b.runs(4)
		if p.peak() > 5 {
			t.Errorf("%d existed", p.peak())
		}
	})
}

func TestAServiceThatSleepsHasNoTimerForTheAgeOfItsInstances(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true}
		b := newBench(t, with(func(s *Settings) { s.MaxAge = 24 * time.Hour }), p, nil)
		r := b.waits()
		b.granted(r)
		r.Release(reserver.Answered)
		time.Sleep(10 * time.Minute)
		b.runs(0)
		if next := b.decide(time.Now()); !next.IsZero() {
			t.Errorf("it looks again at %v", next)
		}
	})
}
