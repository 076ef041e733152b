package control

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// What a loop that leads says of itself is what one that follows says, too: its
// state, its target, how a start goes and when an instance will be ready.
func TestAFollowerSaysWhatTheLeaderSays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		p.startTime = time.Minute
		a, b := newMember(t, defaults(), p), newMember(t, defaults(), remote())
		a.leads()
		a.Wake()
		synctest.Wait()
		told := a.account(t)
		b.FollowAccount(told)
		synctest.Wait()
		if got, want := b.Status(), a.Status(); got.State != Waking || got.Target != want.Target || got.Starting != want.Starting || want.Target == 0 {
			t.Fatalf("it says %+v, the leader %+v", got, want)
		}
		since, _ := a.ColdStart()
		if got, _ := b.ColdStart(); !got.Equal(since) || since.IsZero() {
			t.Errorf("its cold start began at %v, that of the leader at %v", got, since)
		}
		if got, want := b.ReadyIn(), a.ReadyIn(); got != want {
			t.Errorf("ready in %v, the leader says %v", got, want)
		}
		b.leads() // what another one has said counts no longer
		if got := b.Status(); got.Target != 0 {
			t.Errorf("it leads, and has the target %d of another one", got.Target)
		}
	})
}

func TestAFailureIsToldWithItsErrorInWords(t *testing.T) {
	f := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "refused", Err: errors.New("no connection"), Detail: "look there"}
	b, err := json.Marshal(Account{Status: Status{LastError: f.InWords()}})
	if err != nil {
		t.Fatal(err)
	}
	var a Account
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	if got := a.Status.LastError.Error(); got != f.Error() {
		t.Errorf("it is told as %q, and is %q", got, f.Error())
	}
}

func TestAFollowerKeepsTheDecisionsOfTheLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newMember(t, defaults(), remote())
		b.FollowEvent(Decision{From: 0, To: 1, Reason: "one waits"})
		b.FollowEvent(ColdStart{Instance: "x", Ready: time.Second})
		if all := b.Decisions(); len(all) != 1 || all[0].Reason != "one waits" || all[0].ColdStart == nil || all[0].ColdStart.Instance != "x" {
			t.Errorf("%+v", all)
		}
		b.leads()
		b.FollowEvent(Decision{From: 1, To: 5})
		if all := b.Decisions(); len(all) != 1 {
			t.Errorf("it leads, and keeps decisions of another one: %+v", all)
		}
	})
}

// account is what m tells others, as it comes there.
func (m *member) account(t *testing.T) *Account {
	t.Helper()
	b, err := json.Marshal(m.Account())
	if err != nil {
		t.Fatal(err)
	}
	a := new(Account)
	if err := json.Unmarshal(b, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// An instance that has had its last request at a loop that follows is known to the
// one that leads before any other can use it.
func TestAnInstanceThatIsSpentElsewhereIsWithdrawn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		p.want, p.ages, p.wasReady = 1, time.Hour, true
		a := newMember(t, defaults(), p)
		a.leads()
		time.Sleep(2 * time.Second)
		one := a.lists1()

		b := newMember(t, defaults(), remote())
		b.reserver.SetOptions(reserver.Options{MaxWaiting: 10, MaxRequests: 1})
		b.SetShare(one.ID, 1)
		b.Follow([]Shared{one})
		r := b.inside()
		synctest.Wait()
		if len(b.spent) == 0 || b.spent[0] != one.ID {
			t.Fatalf("told %v", b.spent)
		}
		told := len(b.spent)
		b.Follow([]Shared{one}) // of another leader, which does not know it
		if len(b.spent) != told+1 {
			t.Error("the next leader is not told")
		}
		a.Spend(one.ID)
		if got := a.lists1(); got.State != SharedWithdrawn {
			t.Errorf("it is listed as %+v", got)
		}
		r.Release(reserver.Answered)
	})
}

// Of many thousand services most are asleep, and a Caddy that comes is told of all.
func TestTheAccountOfAServiceThatSleepsIsShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, defaults(), remote())
		m.leads()
		b, err := json.Marshal(m.Account())
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 150 {
			t.Errorf("%d bytes: %s", len(b), b)
		}
	})
}
