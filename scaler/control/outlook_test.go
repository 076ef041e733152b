package control

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler/policies"
)

func TestIdleTimeAndAvoidableColdStartsAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Minute }), &platform{local: true, startTime: time.Second}, nil)
		r := b.inside()
		time.Sleep(10 * time.Second)
		r.Release(reserver.Answered)
		b.Trigger() // what happens between decisions is not seen
		time.Sleep(2 * time.Minute)
		b.is(Asleep)
		if st := b.Status(); st.IdleTime.Round(time.Second) != time.Minute || st.Avoidable != 0 {
			t.Errorf("after a stay of a minute: idle for %v, %d avoidable", st.IdleTime, st.Avoidable)
		}
		b.comesAndGoes() // a minute after it went to sleep
		if st := b.Status(); st.Avoidable != 1 || st.ColdStarts != 2 {
			t.Errorf("%d of %d are avoidable", st.Avoidable, st.ColdStarts)
		}
		time.Sleep(time.Hour)
		b.comesAndGoes()
		if st := b.Status(); st.Avoidable != 1 || st.ColdStarts != 3 {
			t.Errorf("after an hour: %d of %d are avoidable", st.Avoidable, st.ColdStarts)
		}
	})
}

func TestAMemoryFromElsewhereIsRecalled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		learned := newBench(t, with(func(s *Settings) { s.Policy = policies.Adaptive{} }), &platform{local: true, startTime: 2 * time.Second}, nil)
		for range 5 {
			learned.comesAndGoes()
			time.Sleep(10 * time.Minute)
		}
		learned.comesAndGoes()
		time.Sleep(time.Minute)
		memory := learned.Memory()
		b := newBench(t, with(func(s *Settings) { s.Policy = policies.Adaptive{} }), &platform{local: true, startTime: 2 * time.Second}, nil)
		b.Recall(memory)
		time.Sleep(5 * time.Minute)
		b.is(Asleep)
		time.Sleep(4 * time.Minute)
		b.is(Awake) // before the next request, of which it has seen none
		if st := b.Status(); st.Outlook.Predicted != 1 || st.ColdStarts != 0 {
			t.Errorf("%+v", st)
		}
		// The schedule around a policy is no other policy.
		b.Apply(with(func(s *Settings) {
			s.Policy = policies.Schedule{Policy: policies.Adaptive{}, Windows: []policies.Window{{Days: [7]bool{}, To: time.Hour, Zone: time.UTC, Min: 1}}}
		}))
		if b.Memory() == nil {
			t.Error("a schedule makes it forget")
		}
		b.Apply(with(func(s *Settings) { s.Policy = policies.Queue{} }))
		waitIdle()
		if b.Memory() != nil {
			t.Error("another policy has its memory")
		}
	})
}

func TestTheScheduleStartsInstancesWithoutARequest(t *testing.T) {
	bubble(t, func(t *testing.T) { // it is midnight in UTC
		every := [7]bool{true, true, true, true, true, true, true}
		s := with(func(s *Settings) {
			s.Max, s.IdleTimeout = 3, time.Minute
			s.Policy = policies.Schedule{Policy: policies.Queue{}, Windows: []policies.Window{{Days: every, From: 8 * time.Hour, To: 9 * time.Hour, Zone: time.UTC, Min: 2}}}
		})
		b := newBench(t, s, &platform{local: true, startTime: time.Second}, nil)
		if b.active() {
			t.Error("a service that sleeps has a goroutine")
		}
		if at := b.Status().Outlook.FloorChange; at.UTC().Hour() != 8 {
			t.Errorf("it changes at %v", at)
		}
		time.Sleep(8*time.Hour + 2*time.Second)
		b.runs(2)
		if o := b.Status().Outlook; o.Floor != 2 || o.NextFloor != 0 {
			t.Errorf("%+v", o)
		}
		time.Sleep(time.Hour)
		b.runs(0)
		time.Sleep(23 * time.Hour)
		b.runs(2)
	})
}

func TestAnOutlookIsToldWhenTheNeedChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Max, s.Concurrency, s.IdleTimeout = 3, 2, 5*time.Minute }), &platform{local: true, startTime: time.Second}, nil)
		last := func() Outlook {
			t.Helper()
			all := b.rec.outlooks()
			if len(all) == 0 {
				t.Fatal("nothing is told")
			}
			return all[len(all)-1]
		}
		var inside []*reserver.Reservation
		for range 5 {
			inside = append(inside, b.inside())
		}
		if o := last(); o.Needed != 3 || b.Status().Needed != 3 {
			t.Errorf("5 requests of which an instance takes 2: %+v, now %d", o, b.Status().Needed)
		}
		n := len(b.rec.outlooks())
		time.Sleep(10 * time.Second)
		b.Trigger()
		waitIdle()
		if len(b.rec.outlooks()) != n {
			t.Errorf("the same is told again: %+v", last())
		}
		for _, r := range inside {
			r.Release(reserver.Answered)
		}
		ended := time.Now()
		if now := b.Status().Needed; now != 0 {
			t.Errorf("without a request, %d are needed", now)
		}
		time.Sleep(4 * time.Minute)
		b.Trigger()
		waitIdle()
		if o := last(); o.Needed != 0 || !o.NeededSince.Equal(ended) {
			t.Errorf("nothing is needed since %v: %+v", ended, o)
		}
		b.Suspend("moving")
		waitIdle()
		if o := b.Status().Outlook; o.Predicted != 0 || !o.ExpectedFrom.IsZero() {
			t.Errorf("of a suspended service something is expected: %+v", o)
		}
	})
}
