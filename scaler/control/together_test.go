package control

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// named is a bench of a service with a name, under a budget that it may share.
func named(t *testing.T, name string, s Settings, p *platform, b *Budget) *bench {
	t.Helper()
	x := bareBench(t, s, p, b)
	x.env.Service = name
	if err := x.SetBackend(p); err != nil {
		t.Fatal(err)
	}
	return x
}

func needs(all ...*bench) []Need {
	var ns []Need
	for _, x := range all {
		ns = append(ns, Need{Loop: x.Loop})
	}
	return ns
}

func TestAServiceStartsOnceWhatItNeedsIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &platform{startTime: 3 * time.Second}
		db := named(t, "db", with(func(s *Settings) { s.IdleTimeout = time.Minute }), store, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs, s.IdleTimeout = needs(db), 10*time.Minute }), &platform{startTime: time.Second}, nil)
		app.runs(0)
		db.runs(0)
		r := app.waits()
		db.runs(1)
		app.runs(0)
		if st := app.Status(); st.State != Waking || st.Start.Waits != "waits for db, which it needs" || db.Status().KeptBy != "app" {
			t.Errorf("%+v, and db is kept by %q", st, db.Status().KeptBy)
		}
		start := time.Now()
		app.granted(r)
		if took := time.Since(start); took != 4*time.Second {
			t.Errorf("it took %v", took)
		}
		if w := app.Status().Start.Waits; w != "" {
			t.Errorf("it waits for %q still", w)
		}
		r.Release(reserver.Answered)

		// It stays awake without a request of its own, and sleeps with the other.
		time.Sleep(9 * time.Minute)
		db.runs(1)
		time.Sleep(2 * time.Minute)
		app.runs(0)
		db.runs(0)
	})
}

func TestANeedThatWasStartedIsEnoughWhereItIsSaidSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := named(t, "db", defaults(), &platform{startTime: time.Minute}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = []Need{{Loop: db.Loop, Started: true}} }), &platform{}, nil)
		r := app.waits()
		start := time.Now()
		app.granted(r)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
		r.Release(reserver.Answered)
	})
}

func TestTheReasonOfAFailingNeedReachesThoseWhoWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &platform{fail: &scaler.Failure{Reason: scaler.ReasonImage, Short: "the image does not exist", ForGood: true}}
		db := named(t, "db", defaults(), store, nil)
		cache := named(t, "cache", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(cache) }), &platform{}, nil)
		r := app.waits()
		err := app.answer(r)
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Kind != RefusedFailing ||
			refusal.Short != "it needs cache: it needs db: the image does not exist" || refusal.Until.IsZero() {
			t.Fatalf("%+v", err)
		}
		app.is(Failing)
		app.runs(0)

		// Once it works again, so does all that needs it.
		store.do(func() { store.fail = nil })
		time.Sleep(2 * time.Minute)
		again := app.waits()
		app.granted(again)
		app.is(Awake)
		again.Release(reserver.Answered)
	})
}

func TestASuspendedNeedIsNamed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := named(t, "db", defaults(), &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		db.Suspend("it is being moved")
		r := app.waits()
		if err := app.answer(r); err == nil || err.Error() != "it needs db, which is suspended: it is being moved" {
			t.Fatal(err)
		}
		db.Resume()
		time.Sleep(2 * needPause)
		again := app.waits()
		app.granted(again)
		again.Release(reserver.Answered)
	})
}

// A need that an operator has put to sleep is woken as by a request.
func TestANeedThatWasPutToSleepIsWoken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := named(t, "db", defaults(), &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		db.Sleep()
		r := app.waits()
		app.granted(r)
		r.Release(reserver.Answered)
	})
}

// A service that others need stays awake as long as they do: no request would
// wake it, for theirs go to instances that are there already.
func TestANeedOfAServiceThatIsAwakeIsNotPutToSleep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := named(t, "db", defaults(), &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		app.comesAndGoes()
		if by := db.Sleep(); len(by) != 1 || by[0] != "app" {
			t.Errorf("it is put to sleep although it is needed: %v", by)
		}
		db.runs(1)
		db.is(Awake)
		if by := app.Sleep(); by != nil {
			t.Errorf("what nothing needs is kept awake by %v", by)
		}
		app.runs(0)
		if by := db.Sleep(); by != nil {
			t.Errorf("a service that sleeps keeps it awake: %v", by)
		}
		db.runs(0)
		app.comesAndGoes()
		db.is(Awake)
	})
}

// However a need comes to have no instance, it has one again while it is needed.
func TestANeedIsStartedAgainHoweverItsInstancesEnded(t *testing.T) {
	for name, end := range map[string]func(*bench, *platform){
		"it ended by itself":     func(_ *bench, p *platform) { p.end(p.ids()[0], nil) },
		"it was stopped":         func(b *bench, p *platform) { b.StopInstance(p.ids()[0]) },
		"suspended, and resumed": func(b *bench, _ *platform) { b.Suspend("moving"); b.runs(0); b.Resume() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				store := &platform{local: true}
				db := named(t, "db", defaults(), store, nil)
				app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
				app.comesAndGoes()
				end(db, store)
				time.Sleep(5 * time.Second)
				app.comesAndGoes()
				db.runs(1)
				db.is(Awake)
			})
		})
	}
}

// None of those that wait holds a place that the need would have to wait for.
func TestTenServicesThatNeedOneStartWithinALimitOfTwo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		budget := NewBudget(2)
		db := named(t, "db", defaults(), &platform{local: true, startTime: time.Second}, budget)
		var apps []*bench
		var waiting []*reserver.Reservation
		for k := range 10 {
			app := named(t, fmt.Sprint("app", k), with(func(s *Settings) { s.Needs = needs(db) }), &platform{local: true, startTime: time.Second}, budget)
			apps = append(apps, app)
			waiting = append(waiting, app.waits())
		}
		start := time.Now()
		for k, r := range waiting {
			apps[k].granted(r)
			r.Release(reserver.Answered)
		}
		waitIdle() // the places of the last ones come back
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("it took %v; want one second for the need, and five for ten starts, two at a time", took)
		}
	})
}

func TestANeedThatEndsIsStartedAgainWhileItIsNeeded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := &platform{local: true}
		db := named(t, "db", defaults(), store, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		r := app.waits()
		app.granted(r)
		time.Sleep(time.Minute)
		store.end(store.ids()[0], &scaler.Failure{Reason: scaler.ReasonExit, Short: "exit status 1"})
		time.Sleep(time.Second)
		db.runs(1)
		r.Release(reserver.Answered)
	})
}

func TestANeedThatIsNoLongerNamedMaySleep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		db := named(t, "db", with(func(s *Settings) { s.IdleTimeout = time.Minute }), &platform{}, nil)
		app := named(t, "app", with(func(s *Settings) { s.Needs = needs(db) }), &platform{}, nil)
		r := app.waits()
		app.granted(r)
		time.Sleep(2 * time.Minute)
		db.runs(1)
		app.Apply(defaults())
		db.runs(0)
		r.Release(reserver.Answered)
	})
}

func TestServicesOfAGroupWakeAndSleepTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		group := new(Group)
		in := with(func(s *Settings) { s.Group, s.IdleTimeout = group, time.Minute })
		web, mail := named(t, "web", in, &platform{}, nil), named(t, "mail", in, &platform{}, nil)
		web.runs(0)
		mail.runs(0)
		r := web.waits()
		web.granted(r)
		mail.runs(1)
		mail.is(Awake)
		r.Release(reserver.Answered)

		// The one is asked, the other not: both stay.
		for range 5 {
			time.Sleep(50 * time.Second)
			web.inside().Release(reserver.Answered)
		}
		mail.runs(1)
		time.Sleep(2 * time.Minute)
		web.runs(0)
		mail.runs(0)
		if web.active() || mail.active() {
			t.Error("a group that sleeps keeps a goroutine")
		}
	})
}

func TestAMemberThatWasPutToSleepWakesWithItsGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		group := new(Group)
		in := with(func(s *Settings) { s.Group, s.IdleTimeout = group, time.Minute })
		web, mail := named(t, "web", in, &platform{}, nil), named(t, "mail", in, &platform{}, nil)
		web.comesAndGoes()
		mail.is(Awake)
		for _, b := range []*bench{web, mail} {
			b.Sleep()
			b.is(Asleep)
		}
		web.runs(0)
		mail.runs(0)
		web.comesAndGoes()
		mail.is(Awake)
	})
}

func TestASuspendedMemberDoesNotKeepItsGroupAwake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		group := new(Group)
		in := with(func(s *Settings) { s.Group, s.IdleTimeout = group, time.Minute })
		web, mail := named(t, "web", in, &platform{}, nil), named(t, "mail", in, &platform{}, nil)
		mail.Suspend("no")
		r := web.waits()
		web.granted(r)
		mail.runs(0)
		r.Release(reserver.Answered)
		time.Sleep(2 * time.Minute)
		web.runs(0)
	})
}

func TestAwakeIsTheFewestInstancesWhileTheServiceIsAwake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{}
		b := newBench(t, with(func(s *Settings) { s.Max, s.Awake, s.IdleTimeout = 5, 3, 10*time.Minute }), p, nil)
		b.runs(0)
		r := b.waits()
		b.granted(r)
		b.runs(3)
		r.Release(reserver.Answered)
		time.Sleep(9 * time.Minute)
		b.runs(3)
		time.Sleep(2 * time.Minute)
		b.runs(0)
	})
}
