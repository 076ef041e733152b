package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

func TestAnAutoscalerDecidesInBetween(t *testing.T) {
	bubble(t, func(t *testing.T) {
		who := &scaler.Failure{Reason: scaler.ReasonConflict, Short: "another program scales it too"}
		p := &platform{hold: &scaler.Hold{Fewer: true, More: true, Failure: who}}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), p, nil)
		x, y := b.inside(), b.waits() // from zero is ours
		b.runs(1)
		p.foreign(3)
		b.granted(y)
		waitIdle()
		if n := b.Status().Target; n != 3 {
			t.Fatalf("target %d", n)
		}
		x.Release(reserver.Answered)
		y.Release(reserver.Answered)
		time.Sleep(4 * time.Minute)
		b.runs(3) // not fewer
		if e := b.Status().LastError; e != who {
			t.Fatalf("last error %v", e)
		}
		time.Sleep(2 * time.Minute)
		b.runs(0) // to zero is ours
		if got := p.ordered(); !slices.Equal(got, []int{1, 0}) {
			t.Fatalf("ordered %v", got)
		}
	})
}

func TestWhatAnotherScalesIsServedAndLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 2, hold: &scaler.Hold{Fewer: true, More: true, None: true, Failure: &scaler.Failure{Short: "another scales it"}}}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), p, nil)
		for range 2 {
			b.inside()
		}
		w := b.waits()
		waitIdle()
		b.runs(2)
		p.foreign(3)
		b.granted(w)
		p.do(func() { p.hold = nil })
		b.waits()
		b.runs(4)
	})
}

func TestTwoThatAreNeitherBusyNorWantedStayWhileTheOtherHasThem(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 2, hold: &scaler.Hold{Fewer: true, More: true, None: true}}
		b := newBench(t, with(func(s *Settings) { s.Max = 5 }), p, nil)
		time.Sleep(time.Hour)
		b.runs(2)
		if len(p.ordered()) != 0 {
			t.Fatalf("ordered %v", p.ordered())
		}
	})
}

func TestWhatAReplacementHasTooManyIsThePlatformsToStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{want: 2, trims: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Min = 5, 2 }), p, nil)
		b.runs(2)
		p.do(func() { p.start() }) // one more, for a while
		waitIdle()
		b.runs(3)
		p.do(func() { p.stop(p.all()[0]) })
		b.runs(2)
		if len(p.ordered()) != 0 {
			t.Fatalf("ordered %v", p.ordered())
		}
	})
}

func TestWhereThePlatformInsistsOnAnOrderTheVictimIsTheOneThatItTakes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{ranked: true}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p, nil)
		all := map[string]*reserver.Reservation{}
		for range 3 {
			r := b.inside()
			all[r.Instance().ID] = r
		}
		// The first is idle, the last is busy: the last is drained all the same.
		all["r1-1"].Release(reserver.Answered)
		time.Sleep(75 * time.Second)
		waitIdle()
		if st := all["r1-3"].Instance().Stats(); !st.Cordoned {
			t.Fatal("another is to go")
		}
		all["r1-3"].Release(reserver.Answered)
		b.runs(2)
		if ids := p.ids(); !slices.Equal(ids, []string{"r1-1", "r1-2"}) {
			t.Fatalf("%v", ids)
		}
	})
}

func TestWhatAStartWaitedForIsSaidWhenItsTimeIsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{startTime: -1, noAddress: true, delay: &scaler.Failure{Reason: scaler.ReasonUnschedulable, Short: "no room", Detail: "0/3 nodes"}}
		b := newBench(t, defaults(), p, nil)
		w := b.waits()
		time.Sleep(time.Minute)
		if b.Status().LastError != nil {
			t.Fatal("a failure before its time")
		}
		time.Sleep(10 * time.Minute)
		if err := b.answer(w); !strings.Contains(err.Error(), "no room") {
			t.Fatal(err)
		}
		if e := b.Status().LastError; e.Reason != scaler.ReasonUnschedulable || e.Detail != "0/3 nodes" {
			t.Fatalf("%+v", e)
		}
	})
}

func TestAnOrderThatIsToWaitIsGivenAgainAndIsNoFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency = 2, 1 }), p, nil)
		x, y := b.inside(), b.inside()
		p.do(func() { p.failStop = scaler.AsFailure(scaler.ErrLater) })
		y.Release(reserver.Answered)
		time.Sleep(65 * time.Second)
		b.runs(2)
		if n := len(p.ordered()); n < 4 || n > 8 {
			t.Fatalf("%d orders", n)
		}
		if e := b.Status().LastError; e != nil || b.rec.count("failed") != 0 {
			t.Fatalf("%v", e)
		}
		p.do(func() { p.failStop = nil })
		time.Sleep(time.Minute)
		b.runs(1)
		x.Release(reserver.Answered)
	})
}

// roller is a platform that replaces instances by itself.
type roller struct {
	*platform
	restarts int
	err      error
}

func (r *roller) Open(env scaler.Env) (scaler.Scaler, error) {
	_, err := r.platform.Open(env)
	return r, err
}

func (r *roller) Restart(context.Context) error {
	r.restarts++
	return r.err
}

func TestARestartIsThePlatformsWhereItCan(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := bareBench(t, defaults(), p, nil)
		r := &roller{platform: p}
		if err := b.SetBackend(r); err != nil {
			t.Fatal(err)
		}
		b.inside()
		if err := b.Restart(); err != nil || r.restarts != 1 {
			t.Fatalf("%v, %d restarts", err, r.restarts)
		}
		time.Sleep(time.Minute)
		if ids := p.ids(); !slices.Equal(ids, []string{"r1-1"}) {
			t.Fatalf("%v", ids)
		}
		r.err = fmt.Errorf("it does not")
		if err := b.Restart(); err == nil {
			t.Fatal("the refusal is not told")
		}
	})
}
