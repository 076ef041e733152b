package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

// splitTest is a split between two fleets, of which the first gets almost all
// requests.
type splitTest struct {
	*config
	first, second *fleet
	name          string
}

// splitSite is the Caddyfile of a split. The services are defined in the global
// options.
func splitSite(global, name, split string, options ...string) string {
	return "{\n\tauto_https off\n\tusher {\n" + global + "\n\t}\n}\n:80 {\n\tusher " + name + " {\n\t\t" + split + "\n\t\theader_down X-Split {http.usher.split}\n\t\theader_down X-Service {http.usher.service}\n\t\t" + strings.Join(options, "\n\t\t") + "\n\t}\n}\n"
}

func (f *fleet) global(options ...string) string {
	return "service " + f.name + " {\n" + f.definition(options...) + "\n}\n"
}

// newSplit starts a split, in which the first fleet is as prepared.
func newSplit(t *testing.T, onFailing string, prepare func(*fleet), options ...string) *splitTest {
	t.Helper()
	x := &splitTest{first: newFleet(t), second: secondFleet(t)}
	x.name = "split." + x.first.name[:min(len(x.first.name), 50)]
	if prepare != nil {
		prepare(x.first)
	}
	x.config = startAnew(t, splitSite(x.first.global(options...)+x.second.global(), x.name,
		fmt.Sprintf("split %s 1000000 %s 1 by {http.request.header.User} {\non_failing %s\n}", x.first.name, x.second.name, onFailing)))
	return x
}

// post sends a request of a user whose side is the first.
func (x *splitTest) post(body string) func() reply {
	return x.begin("POST", "/", body, "User", "ann")
}

// suspend turns the service off, for good: what is stored of it goes when the test
// runs again.
func (f *fleet) suspend() {
	f.t.Helper()
	s := serving(f.t, f.name)
	if err := s.Hub.Suspend(f.t.Context(), s, "for the test"); err != nil {
		f.t.Fatal(err)
	}
}

// startAnew starts a configuration without what an earlier run of the test has stored.
func startAnew(t *testing.T, text string) *config {
	t.Helper()
	if err := os.RemoveAll(storageOf(t)); err != nil {
		t.Fatal(err)
	}
	return start(t, text)
}

func failsForGood(f *fleet) {
	f.fail = &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "exit status 127"}
}

// splitCounts are the requests of a split by side.
func splitCounts(t *testing.T, split string) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := hub.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]float64)
	for _, fam := range families {
		if fam.GetName() != "caddy_usher_split_requests_total" {
			continue
		}
		for _, m := range fam.GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["split"] == split {
				counts[labels["service"]] = m.GetCounter().GetValue()
			}
		}
	}
	return counts
}

// wantFrom checks that a side has answered a POST with that body.
func (x *splitTest) wantFrom(r reply, f *fleet, body string) {
	x.t.Helper()
	if r.err != nil || r.status != 200 || r.header.Get("X-Service") != f.name || r.header.Get("X-Split") != x.name || r.body != "POST / "+body {
		x.t.Errorf("want an answer of %s to %d bytes, got %d of %s in split %s (%s, %v), %d bytes",
			f.name, len(body), r.status, r.header.Get("X-Service"), r.header.Get("X-Split"), r.header.Get("Usher-Error"), r.err, len(r.body))
	}
}

func (x *splitTest) wantError(r reply, code string) {
	x.t.Helper()
	if got := r.header.Get("Usher-Error"); got != code {
		x.t.Errorf("want %s, got %q: %+v", code, got, r)
	}
}

func TestASideThatFailsIsPassedOver(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "next", failsForGood)
	for range 3 {
		x.wantFrom(x.post("hello")(), x.second, "hello")
	}
	counts := splitCounts(t, x.name)
	if counts[x.first.name] != 0 || counts[x.second.name] != 3 {
		t.Errorf("counted: %v", counts)
	}
	if n := counted(t, x.first.name, codeStartFailed); n != "3" {
		t.Errorf("%s requests were refused by the side that fails", n)
	}
}

func TestTheAnswerOfASideThatFailsStands(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "error", failsForGood)
	x.wantError(x.post("hello")(), codeStartFailed)
	if counts := splitCounts(t, x.name); counts[x.first.name] != 1 || counts[x.second.name] != 0 {
		t.Errorf("counted: %v", counts)
	}
}

// A request waits at its side, and part of its body was read, when the side is
// suspended: the other one gets all of it.
func TestAWaitingRequestGoesToTheNextSide(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "next", func(f *fleet) { f.manual = true })
	body := strings.Repeat("0123456789abcdef", 8<<10)
	waiting := []func() reply{x.post(body), x.post("short")}
	x.first.waiting(2)
	x.first.suspend()
	x.wantFrom(waiting[0](), x.second, body)
	x.wantFrom(waiting[1](), x.second, "short")
	x.wantFrom(x.post("late")(), x.second, "late")
	if n := serving(t, x.first.name).Reserver.Stats(); n.Waiting != 0 || n.Demand != 0 {
		t.Errorf("left behind: %+v", n)
	}
}

func TestAWaitingRequestIsAnsweredByItsSide(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "error", func(f *fleet) { f.manual = true })
	waiting := x.post("hello")
	x.first.waiting(1)
	x.first.suspend()
	x.wantError(waiting(), codeSuspended)
}

// An instance refuses the connection, so it has seen nothing of the request, which
// waits for another one when the side is suspended.
func TestARequestThatNoInstanceHasSeenGoesToTheNextSide(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "next", func(f *fleet) { f.manual = true }, "ready platform")
	waiting := x.post("hello")
	x.first.waiting(1)
	x.first.ordered(1)
	x.first.at("tcp", deaf(t), none)
	eventually(t, "an ejected instance", func() bool {
		s := serving(t, x.first.name)
		return s.Loop.Status().Ejected == 1 && s.Reserver.Stats().Waiting == 1
	})
	x.first.suspend()
	x.wantFrom(waiting(), x.second, "hello")
}

// A request that an instance may have seen goes to no other side, even if it may be
// sent again and waits for another instance when its side is suspended.
func TestARequestThatAnInstanceMayHaveSeenStays(t *testing.T) {
	t.Parallel()
	first, second := newFleet(t), secondFleet(t)
	first.manual = true
	c := startAnew(t, splitSite(first.global("ready platform")+second.global(), "split.seen",
		fmt.Sprintf("split %s 1000000 %s 1 by {http.request.header.User} {\non_failing next\n}", first.name, second.name), "lb_retries 1"))
	waiting := c.begin("GET", "/", "", "User", "ann")
	first.waiting(1)
	first.ordered(1)
	end := make(chan struct{})
	address, seen := serveConns(t, func(conn net.Conn) {
		<-end
		resets(conn)
	})
	id := first.at("tcp", address, none)
	eventually(t, "a request at the instance", func() bool { return seen.Load() == 1 })
	first.die(id)
	close(end)
	first.waiting(1)
	first.suspend()
	if r := waiting(); r.status != http.StatusBadGateway {
		t.Errorf("%+v", r)
	}
	if n := splitCounts(t, "split.seen")[second.name]; n != 0 {
		t.Error("the other side has got the request")
	}
}

// listenRequest is what the waiting page of ann sends to listen.
func listenRequest(t *testing.T, c *config) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.front.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(headerWaiting, "1")
	r.Header.Set("User", "ann")
	r.Close = true
	return r
}

// A visitor waits in the browser when the side is suspended: the page asks again, and
// waits at the other side.
func TestAVisitorGoesToTheNextSide(t *testing.T) {
	t.Parallel()
	first, second := newFleet(t), secondFleet(t)
	first.manual, second.manual = true, true
	c := startAnew(t, splitSite(first.global()+second.global(), "split.visited",
		fmt.Sprintf("split %s 1000000 %s 1 by {http.request.header.User} {\non_failing next\n}", first.name, second.name), "waiting_page {\nafter 10ms\n}"))
	ask := func() reply { return c.get("/", append(person, "User", "ann")...) }
	listen := func() func() reply { return c.begin("GET", "/", "", headerWaiting, "1", "User", "ann") }
	told := func(listening func() reply) {
		t.Helper()
		if r := listening(); !strings.Contains(r.body, "event: go") {
			t.Fatalf("%+v", r)
		}
	}
	page := func(f *fleet) {
		t.Helper()
		if r := ask(); r.status != 503 || r.header.Get("Usher-Error") != codeWaitingPage {
			t.Fatalf("%+v", r)
		}
		eventually(t, "a visitor at "+f.name, func() bool { return serving(t, f.name).Reserver.Stats().Visitors == 1 })
	}
	page(first)
	listening := listen()
	first.suspend()
	told(listening)
	page(second)
	// Its stream is at that side, too: it does not send the page away again.
	res, err := http.DefaultClient.Do(listenRequest(t, c))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	events := bufio.NewReader(res.Body)
	if first, err := events.ReadString('\n'); first != "event: state\n" {
		t.Fatalf("the stream begins with %q, %v", first, err)
	}
	second.up()
	if rest, err := io.ReadAll(events); err != nil || !strings.Contains(string(rest), "event: go") {
		t.Fatalf("%s, %v", rest, err)
	}
	if r := ask(); r.status != 200 || r.header.Get("X-Service") != second.name {
		t.Errorf("%+v", r)
	}
}

// A full queue is no failure: the other side would be flooded by it.
func TestAFullQueueIsNotPassedOver(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "next", func(f *fleet) { f.manual = true }, "max_waiting 0")
	x.wantError(x.post("hello")(), codeQueueFull)
}

func TestIfAllSidesFailTheLastOneAnswers(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "next", failsForGood)
	x.second.suspend()
	x.wantError(x.post("hello")(), codeSuspended)
	if counts := splitCounts(t, x.name); counts[x.first.name] != 0 || counts[x.second.name] != 1 {
		t.Errorf("counted: %v", counts)
	}
}

// withGhost is a split whose first side is no service that was made.
func withGhost(t *testing.T, onFailing string) (*config, *fleet) {
	t.Helper()
	f := newFleet(t)
	return start(t, splitSite(f.global()+"registry {\nallow backend test\n}\n", "split."+f.name[:min(len(f.name), 50)],
		fmt.Sprintf("split ghost@3 1000000 %s 1 by {http.request.header.User} {\non_failing %s\n}", f.name, onFailing))), f
}

func TestASideThatIsNoServiceIsPassedOver(t *testing.T) {
	t.Parallel()
	c, f := withGhost(t, "next")
	if r := c.get("/", "User", "ann"); r.status != 200 || r.header.Get("X-Service") != f.name {
		t.Errorf("%+v", r)
	}
}

func TestASideThatIsNoServiceIsAnsweredSo(t *testing.T) {
	t.Parallel()
	c, _ := withGhost(t, "error")
	if r := c.get("/", "User", "ann"); r.status != http.StatusNotFound || r.header.Get("Usher-Error") != codeUnknownService {
		t.Errorf("%+v", r)
	}
}

// A request without a value is divided at random, and one with a value is not.
func TestValuesStayAtTheirSide(t *testing.T) {
	t.Parallel()
	a, b := newFleet(t), secondFleet(t)
	c := start(t, splitSite(a.global("instances 1")+b.global("instances 1"), "split.stay",
		fmt.Sprintf("split %s 50 %s 50 by {http.request.header.User}", a.name, b.name)))
	sides := func(header ...string) int {
		seen := make(map[string]bool)
		for range 40 {
			seen[c.get("/", header...).header.Get("X-Service")] = true
		}
		return len(seen)
	}
	if n := sides(); n != 2 {
		t.Errorf("requests without a value go to %d sides", n)
	}
	for _, user := range []string{"ann", "bob", "cat"} {
		if n := sides("User", user); n != 1 {
			t.Errorf("the requests of %s go to %d sides", user, n)
		}
	}
}

func TestSeriesOfSidesGoWithThem(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "error", nil)
	x.wantFrom(x.post("hello")(), x.first, "hello")
	third := newFleetNamed(t, "third."+x.first.name[:min(50, len(x.first.name))])
	next := start(t, splitSite(x.first.global()+x.second.global()+third.global(), x.name, "split "+x.first.name+" 1 "+third.name+" 0"))
	x.end()
	if counts := splitCounts(t, x.name); !maps.Equal(counts, map[string]float64{x.first.name: 1, third.name: 0}) {
		t.Errorf("after the reload: %v", counts)
	}
	next.end()
	if counts := splitCounts(t, x.name); len(counts) != 0 {
		t.Errorf("after the end: %v", counts)
	}
}

func TestASplitIsCheckedWhenItIsLoaded(t *testing.T) {
	t.Parallel()
	a, b := newFleet(t), secondFleet(t)
	services := a.global() + b.global()
	two := fmt.Sprintf("split %s 1 %s 1", a.name, b.name)
	both := func(first, second string) string {
		return strings.Replace(splitSite(services, "split.checked", first), ":80 {\n", ":80 {\n\thandle /second {\n\t\tusher split.checked {\n\t\t\t"+second+"\n\t\t}\n\t}\n", 1)
	}
	for want, text := range map[string]string{
		"":                                   both(two, two),
		"it stands twice":                    both(two, fmt.Sprintf("split %s 1 %s 2", a.name, b.name)),
		"service other is not defined":       splitSite(services, "split.checked", "split "+a.name+" 1 other 1"),
		a.name + " is a split":               splitSite(services, a.name, "split "+b.name+" 1 other 1"),
		"priority has no effect":             splitSite(a.global("max_waiting 0")+b.global(), "split.checked", two, "priority high"),
		"is no service":                      splitSite(services+"registry {\nallow backend test\n}\n", "split.checked", "split "+a.name+"@2 1 "+b.name+" 1"),
		"async: requests are stored for one": splitSite(services, "split.checked", two, "async"),
	} {
		c, err := tryProvision(t, text)
		if err == nil {
			err = c.app.Start()
			c.end()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestTheAdminAPIChangesWeights(t *testing.T) {
	t.Parallel()
	x := newSplit(t, "error", nil)
	srv := adminServer(t)
	path := "/usher/splits/" + x.name
	ask := func(method, path, body string, header ...string) reply {
		t.Helper()
		return (&config{t: t, front: srv}).do(method, path, body, append(header, "Content-Type", "application/json")...)
	}
	r := ask("GET", path, "")
	etag := r.header.Get("ETag")
	if o := object(t, r); r.status != 200 || etag == "" || o["name"] != x.name || o["on_failing"] != "error" || len(o["sides"].([]any)) != 2 {
		t.Fatalf("%+v", r)
	}
	weights := func(first, second int) string {
		return fmt.Sprintf(`{"weights":{"%s":%d,"%s":%d}}`, x.first.name, first, x.second.name, second)
	}
	for _, c := range []struct {
		status             int
		method, path, body string
		header             []string
	}{
		{428, "PUT", path, weights(0, 1), nil},
		{412, "PUT", path, weights(0, 1), []string{"If-Match", `"x"`}},
		{400, "PUT", path, `{"weights":{}}`, []string{"If-Match", "*"}},
		{400, "PUT", path, `{}`, []string{"If-Match", "*"}},
		{400, "PUT", path, weights(0, 0), []string{"If-Match", "*"}},
		{404, "PUT", path + "x", weights(0, 1), []string{"If-Match", "*"}},
		{404, "GET", path + "/x", "", nil},
		{404, "GET", path + "x", "", nil},
		{405, "POST", path, "", nil},
		{405, "PUT", "/usher/splits", "", nil},
		{200, "PUT", path, weights(0, 1), []string{"If-Match", etag}},
	} {
		if r := ask(c.method, c.path, c.body, c.header...); r.status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, r.status, c.status, r.body)
		}
	}
	x.wantFrom(x.post("now")(), x.second, "now")
	r = ask("GET", path, "")
	set, _ := object(t, r)["set"].(map[string]any)
	if set["by"] != "the admin API" || r.header.Get("ETag") == etag {
		t.Errorf("%+v", r)
	}
	if len(logsOf(logName(t)).entries("weights of a split changed at run time")) != 1 {
		t.Error("the change is not logged")
	}
	if r := ask("GET", "/usher/splits", ""); !strings.Contains(r.body, `"name":"`+x.name+`"`) {
		t.Errorf("%+v", r)
	}
	if splits, _ := object(t, ask("GET", "/usher/services/"+x.first.name, ""))["splits"].([]any); !slices.Equal(splits, []any{x.name}) {
		t.Errorf("the service is a side of %v", splits)
	}
	if r := ask("DELETE", path, "", "If-Match", "*"); r.status != 200 || strings.Contains(r.body, `"set"`) {
		t.Errorf("%+v", r)
	}
	x.wantFrom(x.post("again")(), x.first, "again")
}
