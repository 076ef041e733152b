package reserver

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// twin is two services that have the same instances, and how often each had
// something to tell.
type twin struct {
	s    [2]*Service
	told [2]int
}

func newTwin(instances int) *twin {
	w := new(twin)
	for k := range w.s {
		w.s[k] = withSessions(10)
		w.s[k].SetPlaced(func() { w.told[k]++ })
		for n := range instances {
			w.s[k].Add(fmt.Sprint(n), "", "", "", 10)
		}
	}
	return w
}

func TestG16_AServiceThatIsToldOfASessionSendsItThere(t *testing.T) {
	w := newTwin(3)
	a, b := w.s[0], w.s[1]
	by := Ask{Affinity: ByKey, Key: 42}
	r := ask(t, a, by, true)
	// Not the one that the other service would choose.
	first, _ := b.nearest(42)
	for r.Instance().hash == first.hash {
		r.Release(Answered)
		a.Place(Placement{Key: 42, Instance: hashOf("1")})
		if first.hash == hashOf("1") {
			a.Place(Placement{Key: 42, Instance: hashOf("2")})
		}
		r = ask(t, a, by, true)
	}
	home := r.Instance().ID
	if w.told[0] != 1 {
		t.Fatalf("told %d times", w.told[0])
	}
	for _, p := range a.Placements() {
		if !b.Place(p) {
			t.Fatal("it is not taken")
		}
	}
	other := ask(t, b, by, true)
	if other.Instance().ID != home || other.Session() != SessionKept {
		t.Errorf("it is on %s, %v; want %s", other.Instance().ID, other.Session(), home)
	}
	if w.told[1] != 0 {
		t.Error("it tells what it was told")
	}
	if b.Place(Placement{Key: 1, Instance: hashOf("another")}) {
		t.Error("an instance that does not exist is taken")
	}
}

func TestOnlyWhatIsNewsIsToldAndWhatIsInUseAgainAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTwin(2)
		s := w.s[0]
		use := func(key uint64) { ask(t, s, Ask{Affinity: ByKey, Key: key}, true).Release(Answered) }
		use(1)
		use(2)
		use(1)
		if got := s.TakePlaced(); len(got) != 2 || w.told[0] != 1 {
			t.Fatalf("%v, told %d times", got, w.told[0])
		}
		time.Sleep(149 * time.Second) // a quarter of ten minutes, nearly
		use(1)
		if got := s.TakePlaced(); len(got) != 0 {
			t.Fatalf("%v is told too soon", got)
		}
		time.Sleep(time.Second)
		use(1)
		if got := s.TakePlaced(); len(got) != 1 || got[0].Key != 1 || w.told[0] != 2 {
			t.Fatalf("%v, told %d times", got, w.told[0])
		}
		// A session that goes on elsewhere is news at once.
		s.byHash[s.sessions.of[1].instance.hash].Remove()
		use(1)
		if got := s.TakePlaced(); len(got) != 1 || got[0].Key != 1 {
			t.Fatalf("%v", got)
		}
	})
}

func TestOfTwoPlacesTheFirstHoldsAndOneThatWasLearnedHoldsAnyway(t *testing.T) {
	s := newTwin(3).s[0]
	zero, one, two := hashOf("0"), hashOf("1"), hashOf("2")
	for _, step := range []struct {
		what  Placement
		where uint64
		ok    bool
	}{
		{Placement{Key: 1, Instance: one}, one, true},
		{Placement{Key: 1, Instance: two}, one, true},
		{Placement{Key: 1, Instance: two, Learned: true}, two, true},
		{Placement{Key: 1, Instance: one}, two, true},
		{Placement{Key: 2, Instance: 7}, 7, false},
		{Placement{Key: 3, Instance: zero}, zero, true},
	} {
		if got, ok := s.PlaceUnlessKept(step.what); got.Instance != step.where || ok != step.ok || got.Key != step.what.Key {
			t.Fatalf("%+v: %+v, %v; want %d, %v", step.what, got, ok, step.where, step.ok)
		}
	}
	s.byHash[two].Remove()
	if got, ok := s.PlaceUnlessKept(Placement{Key: 1, Instance: one}); got.Instance != one || !ok {
		t.Errorf("its instance is gone, and it stays there: %+v", got)
	}
	all := s.Placements()
	slices.SortFunc(all, func(a, b Placement) int { return int(a.Key) - int(b.Key) })
	if want := []Placement{{1, one, false}, {3, zero, false}}; !slices.Equal(all, want) {
		t.Errorf("%+v, want %+v", all, want)
	}
}

// A request that waits for the instance of its session goes where the session goes.
func TestARequestThatWaitsFollowsItsSession(t *testing.T) {
	for _, free := range []bool{false, true} {
		t.Run(fmt.Sprintf("to one with a free slot: %t", free), func(t *testing.T) {
			s := withSessions(10)
			one, two := s.Add("one", "", "", "", 1), s.Add("two", "", "", "", 1)
			s.Place(Placement{Key: 7, Instance: one.Hash()})
			s.Place(Placement{Key: 8, Instance: two.Hash()})
			inOne := ask(t, s, Ask{Affinity: ByKey, Key: 7}, true)
			inTwo := ask(t, s, Ask{Affinity: ByKey, Key: 8}, true)
			waits, other := ask(t, s, Ask{Affinity: ByKey, Key: 7}, false), ask(t, s, Ask{Affinity: ByKey, Key: 8}, false)
			other.Cancel()
			if free {
				inTwo.Release(Answered)
			}
			s.Place(Placement{Key: 7, Instance: two.Hash()})
			inOne.Release(Answered)
			if !free {
				wantWaiting(t, waits, "the one that waits")
				inTwo.Release(Answered)
			}
			wantGranted(t, waits, "the one that waits")
			if waits.Instance() != two || waits.Session() != SessionKept {
				t.Errorf("it is on %s, %v", waits.Instance().ID, waits.Session())
			}
			if st := s.Stats(); st.Bound != 0 || st.Waiting != 0 || st.Demand != 1 {
				t.Errorf("%+v", st)
			}
			if got := s.TakePlaced(); len(got) != 0 {
				t.Errorf("it tells of %+v", got)
			}
			waits.Release(Answered)
		})
	}
}

func TestWhatAnAnswerSetsIsToldAsLearned(t *testing.T) {
	w := newTwin(2)
	r := ask(t, w.s[0], Ask{}, true)
	r.Learn(9)
	got := w.s[0].TakePlaced()
	if want := (Placement{9, r.Instance().hash, true}); len(got) != 1 || got[0] != want || w.told[0] != 1 {
		t.Errorf("%+v, told %d times", got, w.told[0])
	}
	r.Release(Answered)
}
