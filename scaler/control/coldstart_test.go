package control

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
)

func TestADecisionTellsHowTheColdStartItBeganWent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		gate := make(chan struct{})
		p := &platform{gate: gate, lag: 200 * time.Millisecond, startTime: 2 * time.Second}
		b := newBench(t, defaults(), p, nil)
		first, second := b.waits(), b.waits()
		time.Sleep(100 * time.Millisecond)
		close(gate)
		time.Sleep(time.Second)
		if c := b.coldStart(); c.Accepted != 100*time.Millisecond || c.Address != 300*time.Millisecond || c.Ready != 0 || c.FirstByte != 0 {
			t.Fatalf("under way: %+v", c)
		}
		time.Sleep(2 * time.Second)
		b.granted(first)
		b.Answered()
		time.Sleep(time.Second)
		b.granted(second)
		b.Answered() // only the first counts
		c := b.coldStart()
		if c.Ready != 2300*time.Millisecond || c.FirstByte != 3100*time.Millisecond {
			t.Fatalf("in the end: %+v", c)
		}
		text, err := json.Marshal(b.Decisions()[0])
		if err != nil {
			t.Fatal(err)
		}
		var told struct {
			ColdStart map[string]any `json:"cold_start"`
		}
		if err := json.Unmarshal(text, &told); err != nil {
			t.Fatal(err)
		}
		delete(told.ColdStart, "asked")
		got, _ := json.Marshal(told.ColdStart)
		if want := `{"accepted_ms":100,"address_ms":300,"first_byte_ms":3100,"instance":"r1-1","ready_ms":2300}`; string(got) != want {
			t.Errorf("told as %s, want %s", got, want)
		}
		first.Release(reserver.Answered)
		second.Release(reserver.Answered)
	})
}

func TestAStartThatIsNotFromZeroIsNoColdStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.Concurrency = 1; s.Max = 2 }), &platform{local: true}, nil)
		one := b.inside()
		two := b.inside()
		b.Answered()
		all := b.Decisions()
		if len(all) != 2 || all[0].ColdStart == nil || all[1].ColdStart != nil {
			t.Fatalf("%+v", all)
		}
		one.Release(reserver.Answered)
		two.Release(reserver.Answered)
	})
}

// coldStart is that of the first decision.
func (b *bench) coldStart() ColdStart {
	b.t.Helper()
	all := b.Decisions()
	if len(all) == 0 || all[0].ColdStart == nil {
		b.t.Fatalf("no cold start in %+v", all)
	}
	return *all[0].ColdStart
}

func TestAWakeLastsUntilItsStartIsThroughAndIsIdleFromThenOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, with(func(s *Settings) { s.IdleTimeout = time.Second }), &platform{local: true, startTime: 10 * time.Second}, nil)
		b.Wake()
		b.is(Waking)
		time.Sleep(10*time.Second + time.Millisecond)
		b.is(Awake)
		time.Sleep(990 * time.Millisecond)
		b.is(Awake)
		time.Sleep(20 * time.Millisecond)
		b.is(Asleep)
	})
}
