package e2e

import (
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestColdStartServesTheRequestThatCausedItAndThenSleepsAgain(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "idle_timeout 400ms"))
	if n := c.Count(); n != 0 {
		t.Fatalf("%d processes run before the first request", n)
	}
	if s := c.Service("web"); s.State != "asleep" || s.Target != 0 {
		t.Errorf("before the first request: state %s, target %d", s.State, s.Target)
	}

	first := c.Get("/")
	wantOK(t, first)
	s := c.Service("web")
	if s.State != "awake" || s.ColdStarts != 1 || s.Instances.Ready != 1 || s.LastColdStartMS == nil {
		t.Errorf("after the first request: %+v", s)
	}
	if pid := onlyPID(t, c); strconv.Itoa(pid) != first.Header.Get("X-Pid") {
		t.Errorf("process %d runs, %s has answered", pid, first.Header.Get("X-Pid"))
	}

	c.AwaitProcesses(0, soon)
	c.AwaitState("web", "asleep", soon)
	second := c.Get("/")
	wantOK(t, second)
	if second.Header.Get("X-Instance") == first.Header.Get("X-Instance") {
		t.Error("a second instance has the id of the first: ids are unique for ever")
	}
}

func TestInstancesFollowDemandFromZeroAndBack(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 4", "concurrency 2", "idle_timeout 1s", "scale queue {\n\tdown_window 300ms\n}"))

	load := c.Load(8, "/sleep?d=20ms")
	c.AwaitReady("web", 4, soon)
	wantAllOK(t, load.Stop())

	one := c.Load(1, "/sleep?d=20ms")
	c.AwaitProcesses(1, soon)
	wantAllOK(t, one.Stop())

	again := c.Load(6, "/sleep?d=20ms")
	c.AwaitReady("web", 3, soon)
	wantAllOK(t, again.Stop())

	c.AwaitProcesses(0, soon)
	c.AwaitState("web", "asleep", soon)
	if most := c.Journal().MaxInside(); most > 2 {
		t.Errorf("%d requests were inside an instance with 2 slots", most)
	}
}

func TestMinimumIsKeptWithoutAnyRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 2 3", "idle_timeout 200ms", "scale queue"))
	c.AwaitReady("web", 2, soon)
	wantOK(t, c.Get("/"))
	harness.Throughout(t, 600*time.Millisecond, func() bool { return c.Count() == 2 }, "two instances run, idle_timeout or not")
	for _, p := range c.Processes()[:1] {
		p.Kill()
	}
	harness.Eventually(t, soon, func() bool { return c.Journal().Starts() == 3 && c.Service("web").Instances.Ready == 2 },
		"the killed instance is replaced")
}

func TestG1_NoInstanceHasMoreInsideThanItsSlots(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 3", "concurrency 3"))
	load := c.Load(30, "/sleep?d=10ms")
	harness.Eventually(t, soon, func() bool { return load.Len() > 300 }, "300 answers")
	wantAllOK(t, load.Stop())
	if most := c.Journal().MaxInside(); most != 3 {
		t.Errorf("at most %d inside, want the 3 slots used and not more", most)
	}
	if n := c.Journal().Starts(); n > 3 {
		t.Errorf("%d starts with max 3", n)
	}
}

func TestG1_OpenWebsocketHoldsItsSlot(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 1"))
	ws := c.WebSocket("/ws", soon)
	if err := ws.Echo("in"); err != nil {
		t.Fatal(err)
	}
	waiting := c.Send(harness.Request{})
	c.AwaitWaiting("web", 1)
	if s := c.Service("web"); s.Slots.InUse != 1 {
		t.Errorf("%d slots in use, want that of the websocket", s.Slots.InUse)
	}
	ws.Close()
	wantOK(t, waiting.Wait(t, soon))
}

func TestG1_LoweredConcurrencyTakesNobodyOutAndLetsNobodyIn(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 3"))
	var held []*harness.Pending
	for i, gate := range []string{"a", "b", "c"} {
		held = append(held, c.Send(harness.Request{Path: hold(c, gate)}))
		inside(t, c, i+1)
	}
	c.MustReload(web(c, nil, "concurrency 1"))
	late := c.Send(harness.Request{Path: "/late"})
	c.AwaitWaiting("web", 1)
	for i, gate := range []string{"a", "b"} {
		c.Open(gate)
		wantOK(t, held[i].Wait(t, soon))
	}
	// One of the three is still inside, and one is the limit now.
	harness.Throughout(t, 150*time.Millisecond, func() bool { return !late.Done() }, "the newcomer waits")
	c.Open("c")
	wantOK(t, held[2].Wait(t, soon))
	wantOK(t, late.Wait(t, soon))
}

func TestG2_BurstOf1000OnAColdServiceIsOneStartAndFirstInFirstOut(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-gate", c.Path("gate")), "instances 0 1", "concurrency 1"))
	const n = 1000
	burst := c.Burst("web", n, "/")
	if s := c.Service("web"); s.State != "waking" || s.Waiting != n {
		t.Errorf("while all wait: state %s, %d waiting", s.State, s.Waiting)
	}
	c.Open("gate")
	wantAllOK(t, burst.Wait(t, harness.Slow(30*time.Second)))

	j := c.Journal()
	if j.Starts() != 1 {
		t.Errorf("%d starts", j.Starts())
	}
	if j.MaxInside() != 1 {
		t.Errorf("%d requests inside one slot", j.MaxInside())
	}
	want := make([]string, n)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	if got := j.Seqs(); !slices.Equal(got, want) {
		t.Errorf("order of entering: %v", got)
	}
}

func TestG2_NewcomerNeverOvertakesAWaiter(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 1", "concurrency 1"))
	// The line never gets empty, while slots come free all the time.
	first := c.Send(harness.Request{Path: hold(c, "gate"), Header: http.Header{"X-Seq": {"first"}}})
	inside(t, c, 1)
	burst := c.Burst("web", 20, "/sleep?d=5ms")
	load := c.Load(3, "/")
	c.Open("gate")
	wantAllOK(t, burst.Wait(t, soon))
	wantAllOK(t, load.Stop())
	wantOK(t, first.Wait(t, soon))

	// All of the burst stood in the queue before the load began.
	want := make([]string, 20)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	if got := c.Journal().Seqs()[1:21]; !slices.Equal(got, want) {
		t.Errorf("order of entering: %v", got)
	}
}

func TestG5_NothingIsReleasedBeforeTheReadinessCheckHasPassed(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-fail-health", c.Path("healthy")), "ready http /healthz"))
	held := c.Send(harness.Request{})
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("listen")) == 1 }, "the instance listens")
	harness.Throughout(t, 200*time.Millisecond, func() bool {
		return len(c.Journal().Of("begin")) == 0 && c.Service("web").State == "waking"
	}, "the service is waking, and its instance has no request")
	c.Open("healthy")
	wantOK(t, held.Wait(t, soon))
}

func TestReadinessCheckGoesByTheStatusThatIsAskedFor(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-fail-health", c.Path("never")), "ready http /healthz {\n\tstatus 503\n\tinterval 10ms\n}"))
	wantOK(t, c.Get("/"))
}

func TestG13_TheRequestStartsTheInstanceAndReadinessReleasesIt(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-gate", c.Path("gate"))))
	sent := time.Now()
	burst := c.Burst("web", 10, "/")
	c.Open("gate")
	wantAllOK(t, burst.Wait(t, soon))

	j := c.Journal()
	started := time.Unix(0, j.Of("start")[0].Time).Sub(sent)
	if started > atOnce {
		t.Errorf("the process began %s after the request", started)
	}
	begins := j.Of("begin")
	released := time.Duration(begins[len(begins)-1].Time - j.Of("listen")[0].Time)
	if released > atOnce {
		t.Errorf("the last of the waiters entered %s after the instance began to listen", released)
	}
}

func TestUnlimitedConcurrencyNeedsOneInstance(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 3", "concurrency unlimited"))
	var pending []*harness.Pending
	for range 50 {
		pending = append(pending, c.Send(harness.Request{Path: hold(c, "gate")}))
	}
	inside(t, c, 50)
	if s := c.Service("web"); s.Slots.Total != nil || s.Slots.InUse != 50 {
		t.Errorf("slots: %+v, want an unlimited total", s.Slots)
	}
	c.Open("gate")
	for _, p := range pending {
		wantOK(t, p.Wait(t, soon))
	}
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d instances were started", n)
	}
}
