package docker

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Many services on an engine have one event stream.
func TestOneEventStreamForAllServices(t *testing.T) {
	s := newScripted(t)
	for n := range 20 {
		name := fmt.Sprintf("web%d", n)
		s.add(fmt.Sprint(n), box{name: name})
		o := s.open(name, Backend{Container: name})
		o.await("a report", func(r scaler.Report) bool { return r.Trouble == nil })
	}
	if n := s.count("GET /events"); n != 1 {
		t.Errorf("there are %d event streams", n)
	}
}

// Events that are late, doubled, unknown, or about something else change
// nothing: an inspection says what is.
func TestEventsAreHints(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	o.forget()
	s.change(id, func(*box) {}, "die", "died", "stop", "destroy", "oom", "no_such_event", "exec_create: x", "health_status: unhealthy", "die")
	s.change(id, func(b *box) { b.health = "unhealthy" }, "rename")
	o.await("what is", func(r scaler.Report) bool {
		return len(r.Instances) == 1 && r.Instances[0].ID == i.ID && r.Instances[0].Unhealthy
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.reports {
		if len(r.Instances) != 1 || r.Instances[0].Phase == scaler.PhaseEnded {
			t.Errorf("an event was believed: %+v", r)
		}
	}
}

// A lost event stream is no outage while there is another, and what happened
// meanwhile is found.
func TestLostEventStream(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	o.forget()
	s.change(id, func(b *box) { b.state, b.exit = "exited", 3 })
	s.cutStreams()
	last := o.ended(i.ID)
	if last.Failure == nil || last.Failure.Short != "exit status 3" || !strings.Contains(last.Failure.Detail, "the last words") {
		t.Errorf("it ended with %v", last.Failure)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.reports {
		if r.Trouble != nil {
			t.Errorf("it counts as an outage: %v", r.Trouble)
		}
	}
}

// While the engine is away the last list holds; then everything is looked at.
func TestEngineIsAwayAndComesBack(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	o.forget()
	s.down()
	r := o.await("the outage", func(r scaler.Report) bool { return r.Trouble != nil })
	if r.Trouble.Reason != scaler.ReasonPlatform || r.Trouble.ForGood || r.Desired != 1 || len(r.Instances) != 1 || r.Instances[0].ID != i.ID {
		t.Errorf("reported as %+v, %v", r, r.Trouble)
	}
	if err := o.scale(2); err == nil {
		t.Error("an order to an engine that is away succeeds")
	}
	s.change(id, func(b *box) { b.state, b.started = "running", b.started+1 })
	s.up()
	if last := o.ended(i.ID); last.Failure == nil || !strings.Contains(last.Failure.Short, "restarted") {
		t.Errorf("the container was started anew meanwhile, and the old instance ended with %v", last.Failure)
	}
	o.await("the new one", func(r scaler.Report) bool {
		return r.Trouble == nil && len(r.Instances) == 1 && r.Instances[0].ID != i.ID
	})
}

// The connection breaks while a start is on its way: it is looked at, and given
// again, when the engine answers.
func TestStartWhoseAnswerIsLost(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	broken := make(chan struct{})
	s.on("POST /containers/"+id+"/start", func(w http.ResponseWriter, _ *http.Request) {
		<-broken
		panic(http.ErrAbortHandler)
	})
	if err := o.scale(1); err != nil {
		t.Fatal(err)
	}
	s.on("POST /containers/"+id+"/start", nil)
	close(broken)
	r := o.await("its address", func(r scaler.Report) bool { return len(r.Instances) == 1 && r.Instances[0].Address != "" })
	if r.Instances[0].Failure != nil {
		t.Errorf("it failed: %v", r.Instances[0].Failure)
	}
}

// A refused stop is tried again.
func TestRefusedStop(t *testing.T) {
	s := newScripted(t)
	s.add("a", box{name: "web", stopRefusals: 1})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	if err := o.scale(0, i.ID); err != nil {
		t.Fatal(err)
	}
	if last := o.ended(i.ID); last.Failure != nil {
		t.Errorf("a stop on request failed: %v", last.Failure)
	}
	if !o.logged("cannot be stopped") {
		t.Error("the refusal is not in the log")
	}
}

func TestWhatTheEngineSaysOfAnEnd(t *testing.T) {
	for want, do := range map[string]func(*box){
		"killed: out of memory (limit 64MiB)": func(b *box) { b.state, b.exit, b.oom, b.memory = "exited", 137, true, 64<<20 },
		"exit status 5":                       func(b *box) { b.state, b.exit = "exited", 5 },
		"exit status 7":                       func(b *box) { b.state, b.exit, b.restart = "restarting", 7, "always" },
	} {
		s := newScripted(t)
		id := s.add("a", box{name: "web"})
		o := s.open("web", Backend{Container: "web"})
		i := o.up()
		s.change(id, do, "die")
		if last := o.ended(i.ID); last.Failure == nil || last.Failure.Short != want {
			t.Errorf("%v, want %s", last.Failure, want)
		}
	}
}

// What `docker stop` does is no failure.
func TestStoppedByHand(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	s.change(id, func(*box) {}, "kill=15")
	told := func() bool {
		o.engine.mu.Lock()
		defer o.engine.mu.Unlock()
		return o.engine.kills[id] != ""
	}
	for deadline := time.Now().Add(patience); !told() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	s.change(id, func(b *box) { b.state, b.exit = "exited", 143 }, "die", "stop")
	if last := o.ended(i.ID); last.Failure != nil {
		t.Errorf("it counts as a failure: %v", last.Failure)
	}
}

func TestRefusalsOfTheEngine(t *testing.T) {
	refuse := func(status int, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"message":%q}`, message)
		}
	}
	t.Run("a socket proxy forbids the start", func(t *testing.T) {
		s := newScripted(t)
		id := s.add("a", box{name: "web"})
		s.on("POST /containers/"+id+"/start", refuse(http.StatusForbidden, "forbidden by policy"))
		f := s.open("web", Backend{Container: "web"}).failure()
		if f == nil || f.Reason != scaler.ReasonForbidden || !strings.Contains(f.Error(), "forbidden by policy") {
			t.Errorf("%v", f)
		}
	})
	t.Run("a pull is refused", func(t *testing.T) {
		s := newScripted(t)
		s.on("POST /containers/create", refuse(http.StatusNotFound, "No such image: private/app:1"))
		s.on("POST /images/create", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, `{"status":"Pulling"}`)
			fmt.Fprintln(w, `{"errorDetail":{"message":"unauthorized: authentication required"},"error":"unauthorized: authentication required"}`)
		})
		o := s.open("web", Backend{Image: "private/app:1"})
		r := o.await("the trouble", func(r scaler.Report) bool { return r.Trouble != nil })
		if f := r.Trouble; f.Reason != scaler.ReasonImage || !f.ForGood || !strings.Contains(f.Detail, "registry_auth") {
			t.Errorf("%v", f)
		}
		f := o.failure()
		if f == nil || f.Reason != scaler.ReasonImage {
			t.Errorf("an order gets %v", f)
		}
	})
	t.Run("the container is another service's", func(t *testing.T) {
		s := newScripted(t)
		s.add("a", box{name: "web"})
		s.open("one", Backend{Container: "web"}).up()
		f := scaler.AsFailure(s.open("two", Backend{Container: "web"}).scale(1))
		if f == nil || f.Reason != scaler.ReasonConflict || !strings.Contains(f.Detail, "service one") {
			t.Errorf("%v", f)
		}
	})
	t.Run("there are fewer containers than instances", func(t *testing.T) {
		s := newScripted(t)
		s.add("a", box{name: "web"})
		o := s.open("web", Backend{Container: "web"})
		if err := o.scale(3); err != nil {
			t.Fatal(err)
		}
		r := o.await("a hold", func(r scaler.Report) bool { return r.Hold != nil })
		if r.Desired != 1 || !r.Hold.More || r.Hold.Failure.Reason != scaler.ReasonQuota {
			t.Errorf("%+v, %v", r, r.Hold.Failure)
		}
	})
}

// A late answer of an inspection does not undo a later one.
func TestInspectionsThatOvertakeEachOther(t *testing.T) {
	s := newScripted(t)
	id := s.add("a", box{name: "web"})
	o := s.open("web", Backend{Container: "web"})
	i := o.up()
	e := o.engine
	e.mu.Lock()
	now := e.views[id]
	e.mu.Unlock()
	old := *now.view
	old.state = "exited"
	e.take(id, &old, now.call-1)
	e.take(id, nil, now.call-1)
	o.mu.Lock()
	defer o.mu.Unlock()
	if last := o.reports[len(o.reports)-1]; len(last.Instances) != 1 || last.Instances[0].ID != i.ID || last.Instances[0].Phase == scaler.PhaseEnded {
		t.Errorf("an old answer was believed: %+v", last)
	}
}

// The next container is made before it is needed, and of the image that the tag
// means now.
func TestContainersAreMadeAhead(t *testing.T) {
	s := newScripted(t)
	o := s.open("web", Backend{Image: "app:1"})
	boxes := func() []string {
		s.mu.Lock()
		defer s.mu.Unlock()
		var all []string
		for id := range s.containers {
			all = append(all, id)
		}
		slices.Sort(all)
		return all
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within %s: %s; there are %v", patience, what, boxes())
			}
		}
	}
	wait("one is there", func() bool { return len(boxes()) == 1 })
	first := boxes()[0]
	i := o.up()
	if s.count("POST /containers/"+first+"/start") != 1 {
		t.Error("the container that was made ahead was not started")
	}
	wait("the next one is made", func() bool { return len(boxes()) == 2 })
	second := boxes()[1]

	s.on("GET /images/app:1/json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Id":"sha256:2"}`) })
	s.mu.Lock()
	for c := range s.streams {
		c <- `{"Type":"image","Action":"tag","Actor":{"ID":"sha256:2"}}`
	}
	s.mu.Unlock()
	wait("it is made anew of the new image", func() bool { b := boxes(); return len(b) == 2 && !slices.Contains(b, second) })
	if !slices.Contains(boxes(), first) {
		t.Error("the container that runs was removed")
	}
	if err := o.scale(0, i.ID); err != nil {
		t.Fatal(err)
	}
	wait("what has stopped is removed", func() bool { b := boxes(); return len(b) == 1 && b[0] != first })
}

// A Caddy takes the ids of those that are gone, and none of one that runs.
func TestIdentities(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "docker")
	one := &identity{dir: dir, files: make(map[string]*os.File)}
	if err := one.take(); err != nil {
		t.Fatal(err)
	}
	one.note(access{Host: "unix:///a"})
	two := &identity{dir: dir, files: make(map[string]*os.File)}
	if err := two.take(); err != nil {
		t.Fatal(err)
	}
	if one.own == "" || two.own == one.own || slices.Contains(two.all, one.own) {
		t.Errorf("one is %v, and two took %v", one.all, two.all)
	}
	for _, f := range one.files {
		f.Close()
	}
	three := &identity{dir: dir, files: make(map[string]*os.File)}
	if err := three.take(); err != nil {
		t.Fatal(err)
	}
	if three.own != one.own || !slices.Contains(three.noted, access{Host: "unix:///a"}) {
		t.Errorf("one is gone, and three took %v with the engines %v", three.all, three.noted)
	}
	for _, id := range []*identity{two, three} {
		for _, f := range id.files {
			f.Close()
		}
	}
}

// A container that is being removed is not the next one to be started.
func TestStartWhileTheLastOneIsRemoved(t *testing.T) {
	s := newScripted(t)
	o := s.open("web", Backend{Image: "app:1"})
	i := o.up()
	s.mu.Lock()
	s.removals = make(chan struct{})
	gate := s.removals
	s.mu.Unlock()
	defer close(gate)
	if err := o.scale(0, i.ID); err != nil {
		t.Fatal(err)
	}
	o.ended(i.ID)
	gone := func() bool {
		o.engine.mu.Lock()
		defer o.engine.mu.Unlock()
		return slices.ContainsFunc(o.members, func(m *member) bool { return m.gone })
	}
	for deadline := time.Now().Add(patience); !gone(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the container was not removed")
		}
	}
	for n := range 3 {
		if err := o.scale(n + 1); err != nil {
			t.Errorf("order %d: %v", n+1, err)
		}
	}
	o.await("three instances", func(r scaler.Report) bool {
		return len(r.Instances) == 3 && !slices.ContainsFunc(r.Instances, func(i scaler.Instance) bool { return i.Address == "" })
	})
}

// A container goes from one revision to the next, also while nothing has looked
// at it since the first was closed.
func TestNextRevision(t *testing.T) {
	s := newScripted(t)
	s.add("a", box{name: "web"})
	for range 20 {
		one := s.open("web", Backend{Container: "web"})
		i := one.up()
		two := s.open("web", Backend{Container: "web", Port: 80})
		two.await("a report", func(r scaler.Report) bool { return r.Trouble == nil })
		if err := one.scale(0, i.ID); err != nil {
			t.Fatal(err)
		}
		one.ended(i.ID)
		one.end()
		j := two.up()
		if err := two.scale(0, j.ID); err != nil {
			t.Fatal(err)
		}
		two.ended(j.ID)
		two.end()
	}
}
