package control

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// member is a bench whose loop shares its instances, and what it lists.
type member struct {
	*bench
	mu      sync.Mutex
	listed  []Shared
	refuses []*Refusal // what it told of
	decided int
	spent   []string
}

func newMember(t *testing.T, s Settings, p *platform) *member {
	t.Helper()
	return newMemberOf(t, s, p, p)
}

// newMemberOf is newMember with a backend in front of the platform.
func newMemberOf(t *testing.T, s Settings, p *platform, backend scaler.Backend) *member {
	t.Helper()
	m := &member{bench: bareBench(t, s, p, nil)}
	m.Share(Sharing{
		List: func(all []Shared) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.listed = all
		},
		Refused: func(r *Refusal) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.refuses = append(m.refuses, r)
		},
		Spent: func(id string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.spent = append(m.spent, id)
		},
		Decided: func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.decided++
		},
	})
	if err := m.SetBackend(backend); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return m
}

// leads makes it the leader that may give orders.
func (m *member) leads() {
	m.Lead(true)
	m.Order(true)
	synctest.Wait()
}

func (m *member) lists() []Shared {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.listed)
}

// lists1 is the one instance that is listed.
func (m *member) lists1() Shared {
	m.t.Helper()
	all := m.lists()
	if len(all) != 1 {
		m.t.Fatalf("%+v is listed\n%s", all, m.story())
	}
	return all[0]
}

func remote() *platform { return &platform{startTime: time.Second} }

func TestASharedInstanceHasNoSlotsBeforeItsShare(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, with(func(s *Settings) { s.Concurrency = 5 }), remote())
		m.leads()
		r := m.waits()
		time.Sleep(2 * time.Second)
		i := m.lists1()
		if i.Slots != 5 || i.State != SharedOpen || !i.Fresh {
			t.Errorf("%+v is listed", i)
		}
		select {
		case <-r.Granted():
			t.Fatal("it has a slot that was given to no one")
		default:
		}
		m.SetShare(i.ID, 1)
		m.granted(r)
		m.waits()
		m.SetShare(i.ID, reserver.NoSlots)
		if n := m.Inside(i.ID); n != 1 {
			t.Errorf("%d inside", n)
		}
		r.Release(reserver.Answered)
		if n := m.Inside(i.ID); n != 0 {
			t.Errorf("%d inside", n)
		}
	})
}

func TestOneThatFollowsOpensAndOrdersNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		m := newMember(t, defaults(), p)
		r := m.waits()
		time.Sleep(time.Minute)
		if p.opened != nil || len(m.lists()) > 0 {
			t.Fatal("it opened its backend, or listed something")
		}
		m.is(Waking) // the leader is at it
		m.SetShare("one", 1)
		m.Follow([]Shared{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}})
		m.granted(r)
		m.is(Awake)
		if got := r.Instance(); got.ID != "one" || got.Address != "127.0.0.1:1" {
			t.Errorf("%+v", got)
		}
		r.Release(reserver.Answered)
		time.Sleep(time.Hour)
		m.is(Awake) // the leader alone scales down
		m.Follow(nil)
		m.is(Asleep)
	})
}

func TestOneThatFollowsDoesAsItIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, defaults(), remote())
		one := Shared{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}
		for _, step := range []struct {
			to   SharedState
			want InstanceState
		}{
			{SharedOpen, InstanceReady},
			{SharedCordoned, InstanceEjected},
			{SharedOpen, InstanceReady},
			{SharedWithdrawn, InstanceDraining},
			{SharedCordoned, InstanceEjected},
			{SharedWithdrawn, InstanceDraining},
			{SharedOpen, InstanceReady},
		} {
			one.State = step.to
			m.Follow([]Shared{one})
			if all := m.Instances(); len(all) != 1 || all[0].State != step.want {
				t.Fatalf("told %v, it is %+v", step.to, all)
			}
		}
		m.SetShare("one", 1)
		r := m.inside()
		one.Address = "127.0.0.1:2" // another one, whatever it is called
		m.Follow([]Shared{one})
		if n := m.Inside("one"); n != 1 {
			t.Errorf("%d inside, and the request of before is", n)
		}
		if all := m.Instances(); len(all) != 1 || all[0].Address != one.Address {
			t.Errorf("%+v", all)
		}
		r.Release(reserver.Answered)
	})
}

func TestOneThatBeginsToLeadGoesOnWithWhatItFollowed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		p.want, p.ages, p.wasReady = 1, time.Hour, true
		other := newMember(t, defaults(), p)
		other.leads()
		time.Sleep(2 * time.Second)
		list := other.lists()
		one := other.lists1()
		if one.Fresh {
			t.Error("it existed before, and is said to be fresh")
		}

		m := newMember(t, defaults(), p)
		gone := Shared{ID: "gone", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}
		m.Follow(append(list, gone))
		m.SetShare(one.ID, 2)
		r := m.inside()
		other.Lead(false)
		synctest.Wait()
		m.leads()
		time.Sleep(time.Second)
		if all := m.Instances(); len(all) != 1 || all[0].ID != one.ID || all[0].State != InstanceReady || all[0].InUse != 1 {
			t.Fatalf("%+v", all)
		}
		if again := m.lists1(); again.ID != one.ID || again.Fresh {
			t.Errorf("%+v is listed", again)
		}
		m.inside().Release(reserver.Answered)
		r.Release(reserver.Answered)
		if len(p.ordered()) > 0 {
			t.Errorf("%v was ordered", p.ordered())
		}
	})
}

func TestOneThatLeadsNoLongerLetsGoOfThePlatform(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		m := newMember(t, with(func(s *Settings) { s.Max, s.Concurrency = 3, 1 }), p)
		m.leads()
		r := m.waits()
		time.Sleep(2 * time.Second)
		one := m.lists1()
		m.SetShare(one.ID, 1)
		m.granted(r)
		m.waits() // for which another one starts
		m.Lead(false)
		synctest.Wait()
		if p.isClosed() != 1 {
			t.Error("the platform is still open")
		}
		ordered := len(p.ordered())
		time.Sleep(time.Hour)
		if all := m.Instances(); len(all) != 1 || all[0].ID != one.ID || all[0].InUse != 1 {
			t.Fatalf("%+v", all)
		}
		if len(p.ordered()) != ordered {
			t.Errorf("%v was ordered", p.ordered())
		}
		r.Release(reserver.Answered)
		m.leads()
		time.Sleep(2 * time.Second)
		if !slices.ContainsFunc(m.lists(), func(s Shared) bool { return s.ID == one.ID }) {
			t.Errorf("%+v is listed, without %s", m.lists(), one.ID)
		}
	})
}

func TestPlacesComeBackFromOneThatLeadsNoLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, gate: make(chan struct{}), deaf: true}
		m := newMember(t, defaults(), p)
		m.leads()
		m.waits()
		synctest.Wait()
		m.Lead(false)
		close(p.gate)
		synctest.Wait()
		// The bench looks for places that are held.
	})
}

func TestWithoutAWordNoOrderIsGiven(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		m := newMember(t, defaults(), p)
		m.Lead(true)
		m.waits()
		time.Sleep(time.Minute)
		if len(p.ordered()) > 0 {
			t.Errorf("%v was ordered", p.ordered())
		}
		m.Order(true)
		time.Sleep(2 * time.Second)
		m.runs(1)
		m.Order(false)
		m.Suspend("for the test")
		time.Sleep(time.Minute)
		m.runs(1)
	})
}

func TestDemandElsewhereCounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		m := newMember(t, with(func(s *Settings) { s.Max, s.Concurrency = 5, 1 }), p)
		m.leads()
		m.Elsewhere(Load{Waiting: 2, Demand: 2, Peak: 2, OldestWait: time.Now(), Arrivals: 2})
		time.Sleep(2 * time.Second)
		m.runs(2)
		m.waits() // above what is elsewhere
		synctest.Wait()
		if n := p.ordered(); n[len(n)-1] != 3 {
			t.Errorf("%v was ordered", n)
		}
		m.Elsewhere(Load{InUse: 2, Demand: 2, Peak: 4, Arrivals: 7}) // of which two came and went
		synctest.Wait()
		if n := p.ordered(); n[len(n)-1] != 5 {
			t.Errorf("%v was ordered", n)
		}
	})
}

func TestNothingSleepsWhileThereIsDemandElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, with(func(s *Settings) { s.DrainTimeout = time.Hour }), remote())
		m.leads()
		m.Elsewhere(Load{InUse: 1, Demand: 1, Peak: 1, Arrivals: 1})
		time.Sleep(time.Hour)
		m.runs(1)
		m.Elsewhere(Load{Arrivals: 1})
		time.Sleep(4 * time.Minute)
		if i := m.lists1(); i.State != SharedOpen {
			t.Errorf("%+v is listed", i)
		}
		time.Sleep(2 * time.Minute)
		if i := m.lists1(); i.State != SharedWithdrawn {
			t.Errorf("%+v is listed", i)
		}
		m.Emptied(m.lists1().ID)
		waitIdle()
		m.runs(0)
		m.is(Asleep)
	})
}

func TestAWithdrawnInstanceIsStoppedWhenItIsEmptyElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, with(func(s *Settings) { s.DrainTimeout = time.Minute }), remote())
		m.leads()
		for _, emptied := range []bool{true, false} {
			m.Wake()
			time.Sleep(2 * time.Second)
			one := m.lists1()
			m.Sleep()
			synctest.Wait()
			if i := m.lists1(); i.State != SharedWithdrawn {
				t.Fatalf("%+v is listed", i)
			}
			time.Sleep(59 * time.Second)
			m.runs(1)
			if emptied {
				m.Emptied(one.ID)
			} else {
				time.Sleep(2 * time.Second) // its time is over
			}
			waitIdle()
			m.runs(0)
		}
	})
}

func TestWhatWasEmptyCountsNoMoreAfterItWasOpenAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, with(func(s *Settings) { s.DrainTimeout = time.Hour }), remote())
		m.leads()
		m.Wake()
		time.Sleep(2 * time.Second)
		one := m.lists1()
		m.Order(false) // or it would be stopped at once
		m.Sleep()
		m.Emptied(one.ID)
		synctest.Wait()
		m.Wake()
		if i := m.lists1(); i.State != SharedOpen {
			t.Fatalf("%+v is listed", i)
		}
		m.Sleep()
		m.Order(true)
		time.Sleep(time.Minute)
		m.runs(1)
	})
}

func TestAnInstanceThatRefusesOneThatFollowsIsProbedThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, defaults(), remote())
		m.SetShare("one", 1)
		m.Follow([]Shared{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}})
		r := m.inside()
		r.Release(reserver.Refused)
		synctest.Wait()
		if all := m.Instances(); all[0].State != InstanceEjected {
			t.Fatalf("%+v", all)
		}
		m.mustProbe()
	})
}

func (m *member) mustProbe() {
	m.t.Helper()
	m.Loop.mu.Lock()
	defer m.Loop.mu.Unlock()
	for _, i := range m.current().instances {
		if i.probe == nil {
			m.t.Errorf("%s is not probed", i.ID)
		}
	}
}

func TestOneThatFollowsRefusesForTheReasonOfTheLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		p.fail = &scaler.Failure{Reason: scaler.ReasonQuota, ForGood: true, Short: "no more instances"}
		leader := newMember(t, defaults(), p)
		leader.leads()
		if _, _, err := leader.ask(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		leader.mu.Lock()
		told := slices.Clone(leader.refuses)
		leader.mu.Unlock()
		if len(told) != 2 || told[0] != nil || told[1] == nil || told[1].Short != "no more instances" {
			t.Fatalf("%+v was told", told)
		}
		told = told[1:]

		m := newMember(t, defaults(), remote())
		r := m.waits()
		m.FollowRefusal(told[0])
		if err := <-r.Granted(); err == nil || err.Error() != told[0].Error() {
			t.Errorf("%v", err)
		}
		if _, _, err := m.ask(); err == nil {
			t.Error("a request waits")
		}
		if len(m.refuses) > 0 {
			t.Errorf("one that follows told of %+v", m.refuses)
		}
		m.FollowRefusal(nil)
		m.waits()
		// One with an instance goes on.
		m.SetShare("one", 1)
		m.Follow([]Shared{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}})
		m.FollowRefusal(told[0])
		m.waits()
		m.Follow(nil)
		if _, _, err := m.ask(); err == nil {
			t.Error("a request waits, and there is no instance any more")
		}
	})
}

// One that led before may have ended while it let no request wait, and its word may
// arrive late. It would hold for ever, for the others.
func TestTheWordOfOneThatLedBeforeIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMember(t, defaults(), remote())
		before := &Refusal{Kind: RefusedFailing, Short: "starts fail"}
		// It has an instance, so the refusal is none of its own.
		m.SetShare("one", 1)
		m.Follow([]Shared{{ID: "one", Network: "tcp", Address: "127.0.0.1:1", Slots: 1}})
		m.FollowRefusal(before)
		takesBack := func(when string) {
			t.Helper()
			time.Sleep(time.Second)
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.refuses) != 1 || m.refuses[0] != nil {
				t.Errorf("%s it has told of %+v", when, m.refuses)
			}
			m.refuses = nil
		}
		m.leads()
		takesBack("when it leads")
		m.FollowRefusal(before)
		takesBack("after a late word")
	})
}

// A reload can change the backend while another loop leads, and while this one
// begins to.
func TestTheLatestBackendIsOpened(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old, latest := remote(), remote()
		m := newMember(t, defaults(), old)
		if err := m.SetBackend(latest); err != nil {
			t.Fatal(err)
		}
		m.leads()
		if old.opened != nil || latest.opened == nil {
			t.Errorf("opened: the old one %v, the latest %v", old.opened != nil, latest.opened != nil)
		}
	})
}

// A platform takes its time to be opened, and meanwhile another loop leads.
func TestABackendThatIsOpenTooLateIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := remote()
		slow := &slowToOpen{platform: p, gate: make(chan struct{})}
		m := newMember(t, defaults(), slow.platform)
		if err := m.SetBackend(slow); err != nil {
			t.Fatal(err)
		}
		m.Lead(true)
		synctest.Wait()
		m.Lead(false)
		close(slow.gate)
		synctest.Wait()
		if p.isClosed() != 1 {
			t.Errorf("it was closed %d times", p.isClosed())
		}
		m.waits()
		time.Sleep(time.Minute)
		if len(p.ordered()) > 0 {
			t.Errorf("%v was ordered", p.ordered())
		}
	})
}

type slowToOpen struct {
	*platform
	gate chan struct{}
}

func (s *slowToOpen) Fingerprint() string { return "slow" }

func (s *slowToOpen) Open(env scaler.Env) (scaler.Scaler, error) {
	<-s.gate
	return s.platform.Open(env)
}

// The loop that leads verifies addresses. One that led, and follows now, does not,
// so no request waits there for a word that never comes.
func TestADoubtEndsWithTheLead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		v := &voucher{platform: remote(), takes: 2 * time.Second}
		m := newMemberOf(t, defaults(), v.platform, v)
		m.leads()
		r := m.waits()
		time.Sleep(2 * time.Second)
		one := m.lists1()
		m.SetShare(one.ID, 1)
		m.granted(r)
		if !r.Instance().AddressReusable() {
			t.Fatal("nothing is verified")
		}
		if ok, err := r.Requeue(reserver.Suspected); ok || err != nil {
			t.Fatal(ok, err)
		}
		m.Lead(false)
		m.granted(r)
		if ok, err := r.Requeue(reserver.Suspected); !ok || err != nil || r.Instance().AddressReusable() {
			t.Errorf("%t, %v: one that follows verifies", ok, err)
		}
		m.Follow([]Shared{one})
		m.leads()
		if i := r.Instance(); i.ID != one.ID || !i.AddressReusable() {
			t.Errorf("of %s nothing is verified, and this loop leads", i.ID)
		}
		r.Release(reserver.Answered)
	})
}
