package policies

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// life is a service with a policy: instances are ready a start time after they
// were wanted, and stop at once.
type life struct {
	t      *testing.T
	policy scaler.Policy
	in     scaler.Inputs
	memory scaler.Memory
	advice scaler.Advice
	start  time.Duration
	ready  []time.Time
	starts int
	asked  int // how many decisions were made
}

func newLife(t *testing.T, p scaler.Policy, start time.Duration) *life {
	began := time.Date(2026, 3, 1, 6, 0, 0, 0, time.UTC)
	l := &life{t: t, policy: p, start: start, in: scaler.Inputs{
		Now: began, Max: 100, Concurrency: 1, IdleTimeout: 5 * time.Minute, IdleSince: began,
	}}
	l.decide()
	return l
}

// decide asks the policy, and does what it says.
func (l *life) decide() {
	l.t.Helper()
	was := l.in.Ready
	l.in.Ready, l.in.Started = 0, nil
	for _, at := range l.ready {
		if at.After(l.in.Now) {
			l.in.Started = append(l.in.Started, at.Add(-l.start))
		} else {
			l.in.Ready++
		}
	}
	l.in.Running, l.in.Starting = len(l.ready), len(l.in.Started)
	if was == 0 && l.in.Running > 0 && l.in.Demand == 0 {
		l.in.IdleSince = l.in.Now // the time counts from readiness on
	}
	l.in.Waiting = max(0, l.in.Demand-l.in.Ready*l.in.Concurrency)
	l.in.Peak = max(l.in.Peak, l.in.Demand)
	if l.in.Ready > 0 {
		l.in.StartTime = l.start
	}
	l.advice, l.memory = l.policy.Target(l.in, l.memory)
	l.asked++
	l.in.Peak = l.in.Demand
	if n := l.advice.Target; n < l.in.Min || n > l.in.Max {
		l.t.Fatalf("%d is not between %d and %d: %+v", n, l.in.Min, l.in.Max, l.advice)
	}
	for len(l.ready) < l.advice.Target {
		l.ready = append(l.ready, l.in.Now.Add(l.start))
		l.starts++
	}
	l.ready = l.ready[:min(len(l.ready), l.advice.Target)]
	l.in.Target = l.advice.Target
}

// pass lets time pass, with the decisions that are due.
func (l *life) pass(d time.Duration) {
	l.t.Helper()
	until := l.in.Now.Add(d)
	for range 200_000 {
		next := until
		if r := l.advice.Recheck; !r.IsZero() && r.Before(next) {
			next = r
		}
		for _, at := range l.ready {
			if at.After(l.in.Now) && at.Before(next) {
				next = at
			}
		}
		if !next.Before(until) {
			l.in.Now = until
			l.decide()
			return
		}
		if next.After(l.in.Now) {
			l.in.Now = next
		} else {
			l.in.Now = l.in.Now.Add(time.Millisecond) // as the loop does
		}
		l.decide()
	}
	l.t.Fatalf("it wants to be asked again and again: %+v at %v", l.advice, l.in.Now)
}

// come is n requests that come at once.
func (l *life) come(n int) {
	l.in.Demand += n
	l.in.Arrivals += uint64(n)
	l.decide()
}

func (l *life) leave() {
	l.in.Demand, l.in.IdleSince = 0, l.in.Now
	l.decide()
}

// visit is a request that is served at once, or after the start.
func (l *life) visit() (cold bool) {
	cold = len(l.ready) == 0 || l.ready[0].After(l.in.Now)
	l.come(1)
	if cold {
		l.pass(l.start)
	}
	l.pass(time.Second)
	l.leave()
	return cold
}

// Requests that wait while no further instance may start cost next to nothing.
func TestAQueueBeforeTheLastInstanceIsRarelyLookedAt(t *testing.T) {
	l := newLife(t, Adaptive{}, 100*time.Millisecond)
	l.in.Max = 1
	l.come(4000)
	l.pass(time.Minute)
	before := l.asked
	l.pass(time.Minute)
	if n := l.asked - before; n > 61 {
		t.Errorf("%d decisions in a minute", n)
	}
	// Where one may start, it is looked at often.
	l.in.Max = 10_000
	l.in.Concurrency = 1000
	l.come(1)
	if wait := l.advice.Recheck.Sub(l.in.Now); l.in.Waiting > 0 && wait > time.Second {
		t.Errorf("the next look comes after %v", wait)
	}
}

func TestAServiceThatWasNeverAskedForCostsNoMemory(t *testing.T) {
	a, m := Adaptive{}.Target(scaler.Inputs{Now: time.Unix(1, 0), Max: 3, IdleTimeout: time.Minute}, nil)
	if a.Target != 0 || a.Mark != 0 || !a.Recheck.IsZero() || m != nil {
		t.Errorf("%+v, memory %v", a, m)
	}
	if a, m := (Adaptive{}).Target(scaler.Inputs{Now: time.Unix(1, 0), Min: 2, Max: 3, Concurrency: 5}, nil); a.Target != 2 || a.Mark != 10 || m != nil {
		t.Errorf("with a minimum: %+v, memory %v", a, m)
	}
}

func TestUntilTwoPausesAreKnownAnInstanceStaysForTheIdleTimeout(t *testing.T) {
	for _, idle := range []time.Duration{200 * time.Millisecond, 10 * time.Second, 5 * time.Minute, 24 * time.Hour} {
		l := newLife(t, Adaptive{}, time.Second)
		l.in.IdleTimeout = idle
		for range 2 {
			l.visit()
			if l.pass(idle - 10*time.Millisecond); l.advice.Target != 1 || !strings.HasPrefix(l.advice.Reason, "kept for up to ") {
				t.Errorf("shortly before %v: %+v", idle, l.advice)
			}
			if l.pass(20 * time.Millisecond); l.advice.Target != 0 || !l.advice.Recheck.IsZero() {
				t.Errorf("shortly after %v: %+v", idle, l.advice)
			}
			l.pass(time.Hour)
		}
	}
}

// A stay is longer than idle_timeout where the pauses make it worth it, and
// then the reason says so.
func TestAStayBeyondTheIdleTimeoutIsExplainedAndBounded(t *testing.T) {
	l := newLife(t, Adaptive{NoPrewarm: true}, 5*time.Second)
	l.in.IdleTimeout = time.Minute
	for range 20 {
		for range 10 { // a crowd: each cold start makes many wait
			l.come(1)
			l.pass(200 * time.Millisecond)
		}
		l.pass(10 * time.Second)
		l.leave()
		l.pass(3 * time.Minute)
	}
	if l.advice.Target == 0 || !strings.Contains(l.advice.Reason, "longer than idle_timeout") {
		t.Errorf("after three minutes: %+v", l.advice)
	}
	if l.pass(61 * time.Second); l.advice.Target != 0 {
		t.Errorf("after four times the idle timeout: %+v", l.advice)
	}
}

func TestTheBoundOfAStayIsNoneForWhatIsStartedAhead(t *testing.T) {
	l := newLife(t, Adaptive{}, 5*time.Second)
	l.in.IdleTimeout = time.Minute
	cold := 0
	for k := range 20 {
		l.pass(10 * time.Minute)
		if l.visit() && k > 5 {
			cold++
		}
	}
	if cold > 0 {
		t.Errorf("%d of 14 visits were cold", cold)
	}
	// It waits for its request for so long, and not in vain for ever.
	if l.pass(30 * time.Minute); l.advice.Target != 0 {
		t.Errorf("half an hour later: %+v", l.advice)
	}
}

func TestAtTheEndOfItsStayTheFirstInstanceTakesTheOthersAlong(t *testing.T) {
	l := newLife(t, Adaptive{}, time.Second)
	l.in.IdleTimeout = 10 * time.Second
	l.come(3)
	l.pass(5 * time.Second)
	if l.leave(); l.advice.Target < 2 {
		t.Fatalf("%+v", l.advice)
	}
	if l.pass(11 * time.Second); l.advice.Target != 0 {
		t.Errorf("%+v", l.advice)
	}
}

// One that ends by itself while nobody needs it, or that another program stops.
func TestAnIdleInstanceThatIsGoneIsNotReplaced(t *testing.T) {
	l := newLife(t, Adaptive{}, time.Second)
	l.visit()
	l.ready = nil
	l.pass(time.Minute)
	if l.starts != 1 {
		t.Errorf("%d starts for one request", l.starts)
	}
}

// The request that it was started for has gone, or an operator has started it:
// it stays, although the service's pauses say that nothing comes now.
func TestAnInstanceThatNoRequestHasUsedStaysForTheIdleTimeout(t *testing.T) {
	l := newLife(t, Adaptive{NoPrewarm: true}, 5*time.Second)
	for range 5 {
		l.pass(time.Hour)
		l.visit()
	}
	l.pass(30 * time.Minute)
	l.ready = []time.Time{l.in.Now}
	l.in.IdleSince = l.in.Now
	l.decide()
	if l.pass(299 * time.Second); l.advice.Target != 1 {
		t.Errorf("before the idle timeout is over: %+v", l.advice)
	}
	if l.pass(2 * time.Second); l.advice.Target != 0 {
		t.Errorf("after it: %+v", l.advice)
	}
	l = newLife(t, Adaptive{}, time.Second)
	l.in.IdleTimeout = 0
	l.ready = []time.Time{l.in.Now}
	l.decide()
	if l.pass(time.Hour); l.advice.Target != 1 {
		t.Errorf("with the idle timeout off: %+v", l.advice)
	}
}

func TestInstancesThatAnotherProgramAskedForGoByAndBy(t *testing.T) {
	l := newLife(t, Adaptive{}, time.Second)
	for range 4 {
		l.ready = append(l.ready, l.in.Now)
	}
	l.in.History = []scaler.Sample{{At: l.in.Now.Add(time.Millisecond), Instances: 4}}
	l.pass(10 * time.Millisecond)
	l.in.History = nil
	if l.pass(15 * time.Second); l.advice.Target != 4 {
		t.Errorf("after 15 seconds: %+v", l.advice)
	}
	if l.pass(2 * time.Minute); l.advice.Target != 1 {
		t.Errorf("after two minutes: %+v", l.advice)
	}
	if l.pass(4 * time.Minute); l.advice.Target != 0 {
		t.Errorf("after six minutes: %+v", l.advice)
	}
}

func TestAServiceThatIsAskedForEachTenMinutesIsReadyInTime(t *testing.T) {
	l := newLife(t, Adaptive{}, 5*time.Second)
	cold, awake := 0, time.Duration(0)
	for k := range 100 {
		for left := 10 * time.Minute; left > 0; left -= 10 * time.Second {
			l.pass(10 * time.Second)
			if k > 10 && len(l.ready) > 0 {
				awake += 10 * time.Second
			}
		}
		if k > 2 && !strings.Contains(l.advice.Reason, "apart: ready before the next") {
			t.Fatalf("the reason is %q", l.advice.Reason)
		}
		if l.visit() && k > 2 {
			cold++
		}
	}
	if cold > 0 || awake > 90*time.Minute {
		t.Errorf("%d of 97 were cold, and it was awake for %v of 15 hours", cold, awake)
	}
	if l.pass(11 * time.Minute); l.advice.Target != 0 {
		t.Errorf("its request did not come, and it stays: %+v", l.advice)
	}
}

func TestThePolicySaysWhenItExpectsTheNextRequest(t *testing.T) {
	l := newLife(t, Adaptive{}, 5*time.Second)
	for range 5 {
		l.visit()
		l.pass(10*time.Minute - time.Second)
	}
	l.visit()
	l.pass(time.Minute)
	next := l.in.IdleSince.Add(10 * time.Minute)
	if a := l.advice; a.Target != 0 || a.ExpectedFrom.After(next) || a.ExpectedTo.Before(next) || a.ExpectedTo.Sub(a.ExpectedFrom) > 2*time.Minute {
		t.Errorf("the next request comes at %v: %+v", next, a)
	}
	l.come(1)
	if a := l.advice; !a.ExpectedFrom.IsZero() {
		t.Errorf("while a request is inside, it expects one: %+v", a)
	}
	once := newLife(t, Adaptive{NoPrewarm: true}, 5*time.Second)
	once.visit()
	once.pass(time.Minute)
	if a := once.advice; !a.ExpectedFrom.IsZero() {
		t.Errorf("without pre-warming it expects a request: %+v", a)
	}
}

func TestPrewarmOffStartsNothingBeforeARequest(t *testing.T) {
	l := newLife(t, Adaptive{NoPrewarm: true}, 5*time.Second)
	for range 20 {
		l.pass(20 * time.Minute)
		l.visit()
	}
	if l.starts != 20 {
		t.Errorf("20 visits, %d starts", l.starts)
	}
}

func TestTheStayHasTheBoundsThatAreConfigured(t *testing.T) {
	l := newLife(t, Adaptive{MinIdle: 20 * time.Minute}, time.Second)
	l.visit()
	if l.pass(19 * time.Minute); l.advice.Target != 1 {
		t.Errorf("before min_idle is over: %+v", l.advice)
	}
	if l.pass(2 * time.Minute); l.advice.Target != 0 {
		t.Errorf("after min_idle: %+v", l.advice)
	}
	l = newLife(t, Adaptive{MaxIdle: 30 * time.Second}, time.Second)
	l.visit()
	if l.pass(29 * time.Second); l.advice.Target != 1 {
		t.Errorf("before max_idle is over: %+v", l.advice)
	}
	if l.pass(2 * time.Second); l.advice.Target != 0 {
		t.Errorf("after max_idle: %+v", l.advice)
	}
}

func TestWithIdleTimeoutOffTheLastInstanceStays(t *testing.T) {
	l := newLife(t, Adaptive{}, time.Second)
	l.in.IdleTimeout = 0
	l.visit()
	if l.pass(1000 * time.Hour); l.advice.Target != 1 || l.advice.Reason != "idle_timeout is off" {
		t.Errorf("%+v", l.advice)
	}
}

// Ten requests of 0.1 s and a start of half a minute: the one that starts serves
// them in a second, and a second one would come half a minute later.
func TestNoFurtherStartForWhatIsServedSooner(t *testing.T) {
	l := newLife(t, Adaptive{}, 30*time.Second)
	l.in.ServiceTime, l.in.StartTime, l.in.Concurrency = 100*time.Millisecond, 30*time.Second, 4
	l.come(1)
	l.pass(2 * time.Second)
	l.come(9)
	if l.pass(20 * time.Second); l.advice.Target != 1 {
		t.Errorf("%+v", l.advice)
	}
}

func TestLongRequestsThatWaitGetInstancesOfTheirOwn(t *testing.T) {
	l := newLife(t, Adaptive{}, time.Second)
	l.in.ServiceTime, l.in.StartTime = 20*time.Second, time.Second
	l.come(8)
	if l.decide(); l.advice.Target < 6 || l.advice.Target > 8 {
		t.Errorf("%+v", l.advice)
	}
	if !strings.Contains(l.advice.Reason, "8 waiting") {
		t.Errorf("the reason is %q", l.advice.Reason)
	}
}

func TestASteadyQueueIsWorthOneMoreInTheEnd(t *testing.T) {
	l := newLife(t, Adaptive{}, 10*time.Second)
	l.in.ServiceTime, l.in.StartTime = time.Second, 10*time.Second
	l.come(1)
	l.pass(11 * time.Second)
	l.in.Arrivals++
	l.in.Demand = 2 // one is served, and there always is one that waits
	for range 60 {
		l.in.Arrivals++
		l.pass(time.Second)
	}
	if l.advice.Target < 2 {
		t.Errorf("%+v", l.advice)
	}
}

func TestTheMemoryIsBoundedAndSurvives(t *testing.T) {
	l := newLife(t, Adaptive{}, 3*time.Second)
	gap := time.Second
	for k := range 400 {
		l.visit()
		l.come(1 + k%40)
		l.pass(2 * time.Second)
		l.leave()
		l.pass(gap)
		if gap *= 2; gap > 2*24*time.Hour {
			gap = time.Second
		}
	}
	m := l.memory.(*adaptiveMemory)
	if size := sizeOf(reflect.ValueOf(m)); size > 2<<10 {
		t.Errorf("it has %d bytes", size)
	}
	stored, err := Adaptive{}.EncodeMemory(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Adaptive{}.DecodeMemory(stored)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Adaptive{}.EncodeMemory(back)
	if err != nil || !bytes.Equal(stored, again) {
		t.Errorf("%v\n%s\n%s", err, stored, again)
	}
	// The pause goes on: what is likely does not depend on the restart.
	in := l.in
	in.Arrivals = 0
	a, _ := Adaptive{}.Target(l.in, l.memory)
	if b, _ := (Adaptive{}).Target(in, back); a.Target != b.Target || a.Recheck.Sub(b.Recheck).Abs() > time.Second {
		t.Errorf("%+v before the restart, %+v after it", a, b)
	}
}

// sizeOf counts the bytes of a value and of all that it points to.
func sizeOf(v reflect.Value) int {
	n := int(v.Type().Size())
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			n += sizeOf(v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			break
		}
		for _, f := range v.Fields() {
			n += sizeOf(f) - int(f.Type().Size())
		}
	case reflect.Slice:
		n += v.Cap() * int(v.Type().Elem().Size())
	case reflect.Array:
		for k := range v.Len() {
			n += sizeOf(v.Index(k)) - int(v.Type().Elem().Size())
		}
	default:
	}
	return n
}

func TestAMemoryThatCannotBeReadIsRefused(t *testing.T) {
	for _, stored := range []string{
		``, `x`, `{}`, `{"version":2}`, `{"version":1,"start":-1}`, `{"version":1,"crowd":-1}`, `{"version":1,"busy":-4}`,
		`{"version":1,"free":[{"level":3},{"level":2}]}`,
		`{"version":1,"gaps":[{"reached":[1],"ended":[2]}]}`,
		`{"version":1,"gaps":[{"reached":[1],"ended":[1],"latest":{"count":[9]}}]}`,
		`{"version":1,"gaps":[{"reached":[1],"ended":[1],"latest":{"count":[1],"value":[[5000]]}}]}`,
	} {
		if m, err := (Adaptive{}).DecodeMemory([]byte(stored)); err == nil {
			t.Errorf("%s is read as %+v", stored, m)
		}
	}
}

func TestTheSameQuestionHasTheSameAnswer(t *testing.T) {
	l := newLife(t, Adaptive{}, 3*time.Second)
	for range 30 {
		l.visit()
		before, err := Adaptive{}.EncodeMemory(l.memory)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := Adaptive{}.Target(l.in, l.memory)
		b, _ := Adaptive{}.Target(l.in, l.memory)
		after, err := Adaptive{}.EncodeMemory(l.memory)
		if err != nil || a != b || !bytes.Equal(before, after) {
			t.Fatalf("%v: %+v, then %+v\n%s\n%s", err, a, b, before, after)
		}
		l.pass(50 * time.Second)
	}
}

func TestAClockThatJumpsADayDoesNoHarm(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		l := newLife(t, Adaptive{}, 3*time.Second)
		for range 10 {
			l.visit()
			l.pass(10 * time.Minute)
		}
		l.in.Now = l.in.Now.Add(jump)
		l.advice.Recheck = time.Time{}
		l.visit()
		l.in.Now = l.in.Now.Add(-jump)
		l.advice.Recheck = time.Time{}
		l.visit()
		for range 5 {
			l.pass(10 * time.Minute)
			l.visit()
		}
		l.pass(10 * time.Minute)
		if l.visit() {
			t.Errorf("after a jump of %v it knows nothing", jump)
		}
	}
}

func TestAYearWithoutARequestCostsNothing(t *testing.T) {
	l := newLife(t, Adaptive{}, 3*time.Second)
	for range 10 {
		l.visit()
		l.pass(10 * time.Minute)
	}
	starts := l.starts
	l.pass(365 * 24 * time.Hour)
	if l.advice.Target != 0 || !l.advice.Recheck.IsZero() || l.starts > starts+3 {
		t.Errorf("%d starts, %+v", l.starts-starts, l.advice)
	}
}

// FuzzAdaptive asks the policy anything. It answers within the bounds.
func FuzzAdaptive(f *testing.F) {
	f.Add(int64(0), int64(1e9), 5, 3, 1, 10, 2, 1, int64(300e9), int64(1e9), uint64(7))
	f.Add(int64(-1), int64(math.MaxInt64), math.MaxInt, math.MaxInt, 0, 1, 0, 0, int64(0), int64(-1), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, first, later int64, demand, waiting, concurrency, most, running, ready int, idle, took int64, arrivals uint64) {
		p := Adaptive{}
		var m scaler.Memory
		for k, ns := range []int64{first, later, first} {
			in := scaler.Inputs{
				Now: time.Unix(0, ns), Min: 0, Max: max(most, 1), Concurrency: max(concurrency, 0), Demand: max(demand>>k, 0),
				Waiting: max(min(waiting, demand>>k), 0), Running: max(running, 0), Ready: max(min(ready, running), 0),
				IdleTimeout: max(time.Duration(idle), 0), IdleSince: time.Unix(0, first), StartTime: max(time.Duration(took), 0),
				ServiceTime: max(time.Duration(took), 0), Arrivals: arrivals >> k, Peak: max(demand, 0),
			}
			in.Max = min(in.Max, scaler.MaxInstances)
			in.Running, in.Ready = min(in.Running, in.Max), min(in.Ready, in.Max)
			var a scaler.Advice
			if a, m = p.Target(in, m); a.Target < in.Min || a.Target > in.Max || a.Mark < 0 || a.Reason == "" {
				t.Fatalf("%+v of %+v", a, in)
			}
		}
	})
}
