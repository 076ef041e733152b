package reserver

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestG5_NothingIsReleasedIntoAnInstanceThatRefusesConnections(t *testing.T) {
	var ejected []string
	s := New(Options{MaxWaiting: 10}, nil, hooks{ejected: func(i *Instance) { ejected = append(ejected, i.ID) }})
	i := s.Add("x", "", "", "", 2)
	a, b := mustReserve(t, s), mustReserve(t, s)
	w := mustWait(t, s, false)
	a.Release(Refused)
	wantWaiting(t, w, "the waiter")
	b.Release(Answered) // was sent before; says nothing about now
	wantWaiting(t, w, "the waiter")
	if got := s.Stats(); got.Open != 0 || got.Slots != 0 {
		t.Fatalf("an ejected instance counts as capacity: %+v", got)
	}
	if len(ejected) != 1 {
		t.Fatalf("ejected: %v", ejected)
	}
	i.Restore()
	wantGranted(t, w, "the waiter")
}

func TestG5_ThreeFailuresInARowEject(t *testing.T) {
	s := New(Options{}, nil, hooks{})
	i := s.Add("x", "", "", "", Unlimited)
	end := func(f Outcome) bool {
		mustReserve(t, s).Release(f)
		return i.Stats().Ejected
	}
	for _, f := range []Outcome{Failed, Failed, Answered, Failed, Neutral, Failed, Neutral} {
		if end(f) {
			t.Fatal("ejected without three in a row")
		}
	}
	if !end(Failed) {
		t.Fatal("not ejected after three in a row")
	}
}

func TestG5_WhatWasSentBeforeAnEjectionDoesNotJudgeTheRestoredInstance(t *testing.T) {
	s := New(Options{}, nil, hooks{})
	i := s.Add("x", "", "", "", Unlimited)
	var old []*Reservation
	for range 8 {
		old = append(old, mustReserve(t, s))
	}
	old[0].Release(Refused)
	for _, r := range old[1:4] {
		r.Release(Failed) // while it is ejected
	}
	i.Restore()
	mustReserve(t, s).Release(Failed)
	mustReserve(t, s).Release(Failed)
	for _, r := range old[4:7] {
		r.Release(Failed) // after it was restored
	}
	old[7].Release(Refused)
	if i.Stats().Ejected {
		t.Fatal("ejected after two failures")
	}
	mustReserve(t, s).Release(Failed)
	if !i.Stats().Ejected {
		t.Fatal("not ejected after three")
	}
}

// ejections has an instance ejected as often as there are fates, restores it
// after each pause, as a prober does, and returns the pauses.
func ejections(t *testing.T, s *Service, i *Instance, fates ...Outcome) (pauses []time.Duration) {
	t.Helper()
	for _, f := range fates {
		began := time.Now()
		for range map[Outcome]int{Refused: 1, Failed: 3, Answered: 1}[f] {
			mustReserve(t, s).Release(f)
		}
		if f == Answered {
			continue
		}
		if !i.Stats().Ejected {
			t.Fatal("not ejected")
		}
		time.AfterFunc(i.Pause(), i.Restore)
		w := new(Reservation)
		if ok, err := s.Reserve(w, Ask{}); ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := <-w.Granted(); err != nil {
			t.Fatal(err)
		}
		pauses = append(pauses, time.Since(began))
		w.Release(Neutral)
	}
	return pauses
}

func TestEjectionPausesGrowUntilARequestIsAnswered(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		fates []Outcome
		want  []time.Duration
	}{
		"refused": {
			slices.Repeat([]Outcome{Refused}, 11),
			[]time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 30000 * ms, 30000 * ms},
		},
		"failed": {
			slices.Repeat([]Outcome{Failed}, 7),
			[]time.Duration{1000 * ms, 2000 * ms, 4000 * ms, 8000 * ms, 16000 * ms, 30000 * ms, 30000 * ms},
		},
		"both": {
			[]Outcome{Refused, Refused, Failed},
			[]time.Duration{100 * ms, 200 * ms, 4000 * ms},
		},
		"answered in between": {
			[]Outcome{Refused, Refused, Answered, Refused, Failed, Answered, Failed},
			[]time.Duration{100 * ms, 200 * ms, 100 * ms, 2000 * ms, 1000 * ms},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{MaxWaiting: 1}, nil, hooks{})
				i := s.Add("x", "", "", "", 1)
				if got := ejections(t, s, i, c.fates...); !slices.Equal(got, c.want) {
					t.Errorf("paused %v; want %v", got, c.want)
				}
			})
		})
	}
}

func TestEjectionPausesStayAtTheirMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 1}, nil, hooks{})
		i := s.Add("x", "", "", "", 1)
		got := ejections(t, s, i, slices.Repeat([]Outcome{Refused}, 200)...)
		if last := got[len(got)-1]; last != 30*time.Second {
			t.Errorf("the 200th pause is %v", last)
		}
	})
}

func TestEjectionPausesAreNotResetByAnAnswerToWhatWasSentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 1}, nil, hooks{})
		i := s.Add("x", "", "", "", 3)
		during, after := mustReserve(t, s), mustReserve(t, s)
		mustReserve(t, s).Release(Refused)
		during.Release(Answered)
		i.Restore()
		after.Release(Answered)
		if got := ejections(t, s, i, Refused); got[0] != 200*time.Millisecond {
			t.Errorf("the second pause is %v", got[0])
		}
	})
}
