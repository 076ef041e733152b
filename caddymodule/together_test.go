package caddymodule

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

func TestARequestWakesWhatItsServiceNeedsFirst(t *testing.T) {
	t.Parallel()
	db, app := newFleetNamed(t, "together-db"), newFleetNamed(t, "together-app")
	c := start(t, site(app.usher("needs together-db")+"\nroute /db {\n"+db.usher()+"\n}\n"))
	if r := c.do("GET", "/", ""); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	if n := len(db.fake.IDs()); n != 1 {
		t.Errorf("%d instances of the need run", n)
	}
	if sum := c.app.generation.Services["together-db"].Summary(); sum.NeededBy != "together-app" {
		t.Errorf("it is needed by %q", sum.NeededBy)
	}
}

func TestASuspendedNeedIsTheTroubleOfWhatNeedsIt(t *testing.T) {
	t.Parallel()
	db, cache, app := newFleetNamed(t, "off-db"), newFleetNamed(t, "off-cache"), newFleetNamed(t, "off-app")
	c := start(t, site(app.usher("needs off-cache")+"\nroute /cache {\n"+cache.usher("needs off-db")+"\n}\nroute /db {\n"+db.usher()+"\n}\n"))
	services := c.app.generation.Services
	operate := func(verb, reason string) {
		t.Helper()
		if err := services["off-db"].Hub.Operate(t.Context(), services["off-db"], verb, reason); err != nil {
			t.Fatal(err)
		}
	}
	operate("suspend", "db upgrade")
	if r := c.do("GET", "/", ""); r.status != 503 {
		t.Fatalf("%+v", r)
	}
	details := func() hub.ServiceDetails {
		d, err := services["off-app"].Details(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := hub.BlockedNeed{Service: "off-db", Suspended: true, Trouble: "it needs off-cache: it needs off-db, which is suspended (db upgrade)"}
	if d := details(); d.BlockedBy == nil || *d.BlockedBy != want {
		t.Errorf("%+v, want %+v", d.BlockedBy, want)
	}
	operate("resume", "")
	eventually(t, "an answer", func() bool { return c.do("GET", "/", "").status == 200 })
	if d := details(); d.BlockedBy != nil {
		t.Errorf("it serves, and is blocked by %+v", d.BlockedBy)
	}
}

func TestWhyANeedDoesNotStartIsTheAnswer(t *testing.T) {
	t.Parallel()
	db, app := newFleetNamed(t, "together-broken-db"), newFleetNamed(t, "together-broken-app")
	db.fail = &scaler.Failure{Reason: scaler.ReasonImage, Short: "the image is missing", ForGood: true}
	c := start(t, site(app.usher("needs together-broken-db")+"\nroute /db {\n"+db.usher()+"\n}\n"))
	r := c.do("GET", "/", "")
	if r.status != 503 || r.header.Get("Usher-Error") != "start_failed" ||
		!strings.Contains(r.body, "it needs together-broken-db: the image is missing") {
		t.Fatalf("%+v", r)
	}
	if n := len(app.fake.IDs()); n != 0 {
		t.Errorf("%d instances were started in vain", n)
	}
}

func TestNeedsThatCannotBeMetFailTheLoad(t *testing.T) {
	t.Parallel()
	define := func(name, more string) string {
		return fmt.Sprintf("route /%s {\nusher %s {\nbackend test x\n%s\n}\n}\n", name, name, more)
	}
	for text, want := range map[string]string{
		define("circle-a", "needs circle-b") + define("circle-b", "needs circle-c") + define("circle-c", "needs circle-a"): "none of these could start first: circle-a needs circle-b needs circle-c needs circle-a",
		define("circle-d", "needs circle-d"):   "none of these could start first: circle-d needs circle-d",
		define("circle-e", "needs no-such-db"): "service no-such-db is not defined, but a need of service circle-e uses it",
	} {
		c := provision(t, site(text))
		if err := c.app.Start(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		c.end()
	}
	for def, want := range map[string]string{
		`"needs":[{"service":"db"},{"service":"db"}]`: "needs: db is named twice",
		`"needs":[{"service":"Db!"}]`:                 "is not a service name",
		`"group":"two words"`:                         "group: 'two words' is not a service name",
		`"max_requests":-1`:                           "max_requests",
		`"max_age":-1`:                                "max_age must be positive",
		`"busy":{}`:                                   "busy: say how an instance is asked",
		`"busy":{"http":"/x","cpu":5}`:                "busy: say http or cpu, not both",
		`"busy":{"http":"x"}`:                         "must begin with '/'",
		`"busy":{"cpu":-1}`:                           "busy: cpu is -1 percent",
		`"busy":{"cpu":5}`:                            "the backend test cannot tell how much its instances work: use busy http",
		`"instances":{"max":2,"awake":3}`:             "instances: awake is 3, but must be between 0 and the maximum, which is 2",
	} {
		cfg := jsonApps(`{"services":{"web":{"backend":{"type":"test","fleet":"a"},`+def+`}}}`, "")
		if _, err := tryProvision(t, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", def, want, err)
		}
	}
}

// Requests that come together would wait for each other, if the instance of one
// counted as room for the rest.
func TestAnInstanceOfOneRequestHasOneSlot(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]int{"max_requests 1": 1, "max_requests 2": 100} {
		f := newFleetNamed(t, "once-"+option[len(option)-1:])
		c := start(t, site(f.usher(option)))
		for name, d := range c.app.generation.Definitions {
			if got := d.Settings.Concurrency; got != want {
				t.Errorf("%s, %s: %d slots, want %d", name, option, got, want)
			}
		}
	}
}

func TestAnInstanceServesItsNumberOfRequests(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher("max_requests 2")))
	var seen []string
	for range 6 {
		r := c.do("GET", "/", "")
		if r.status != 200 {
			t.Fatalf("%+v", r)
		}
		seen = append(seen, r.header.Get("X-Instance"))
	}
	if seen[0] != seen[1] || seen[2] != seen[3] || seen[4] != seen[5] || seen[1] == seen[2] || seen[3] == seen[4] {
		t.Errorf("the requests went to %v", seen)
	}
}
