package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/reserver"
)

// setCookies returns the cookies of a name that an answer sets.
func setCookies(t *testing.T, h http.Header, name string) (all []*http.Cookie) {
	t.Helper()
	for _, line := range h.Values("Set-Cookie") {
		c, err := http.ParseSetCookie(line)
		if err != nil {
			t.Fatal(err)
		}
		if c.Name == name {
			all = append(all, c)
		}
	}
	return all
}

// cookieOf returns what Usher sets in an answer as the header Cookie of the
// next request; "" if it sets none.
func (f *fleet) cookieOf(r reply) string {
	f.t.Helper()
	switch all := setCookies(f.t, r.header, "usher_"+f.name); len(all) {
	case 0:
		return ""
	case 1:
		return all[0].Name + "=" + all[0].Value
	default:
		f.t.Fatalf("it is set %d times", len(all))
		return ""
	}
}

// sessionFleet serves with n instances.
func sessionFleet(t *testing.T, n int, options ...string) (*fleet, *config) {
	t.Helper()
	f := newFleet(t)
	options = append([]string{fmt.Sprintf("instances %d", n), "header_down X-Session {http.usher.session}"}, options...)
	c := start(t, site(f.usher(options...)))
	f.ready(n)
	return f, c
}

// at of a reply is the instance that has answered.
func (r reply) at() string { return r.header.Get("X-Instance") }

func (r reply) session() string { return r.header.Get("X-Session") }

// session begins a session and returns its instance and its cookie.
func (f *fleet) session(c *config) (instance, cookie string) {
	f.t.Helper()
	r := c.get("/")
	if instance, cookie = r.at(), f.cookieOf(r); instance == "" || cookie == "" || r.session() != "new" {
		f.t.Fatalf("no session: %+v", r)
	}
	return instance, cookie
}

func TestG16RequestsWithACookieGoToTheInstanceThatSetIt(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 3, "concurrency 2", "affinity cookie", "balance random")
	for range 5 {
		own, cookie := f.session(c)
		if strings.Contains(cookie, own) {
			t.Errorf("the cookie shows the instance: %s", cookie)
		}
		for k := range 5 {
			if r := c.get("/", "Cookie", "a=b; "+cookie+"; c=d"); r.at() != own || r.session() != "kept" || f.cookieOf(r) != "" {
				t.Errorf("request %d: %+v", k, r)
			}
		}
	}
}

// One session's instance is full: its next request waits for it, and those of
// others pass.
func TestG16ARequestWaitsForTheInstanceOfItsSessionAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	inside, leave := make(chan string, 10), make(chan struct{})
	plain := f.handler
	f.handler = func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/stay" {
				inside <- id
				<-leave
			}
			plain(id).ServeHTTP(w, r)
		})
	}
	c := start(t, site(f.usher("instances 2", "concurrency 1", "affinity cookie", "waiting_page {\nafter 10ms\n}", "header_down X-Session {http.usher.session}")))
	f.ready(2)
	own, cookie := f.session(c)
	stays := c.begin("GET", "/stay", "", "Cookie", cookie)
	if at := <-inside; at != own {
		t.Fatalf("the session is on %s and not on %s", at, own)
	}
	waits := c.begin("GET", "/next", "", append([]string{"Cookie", cookie}, person...)...)
	f.waiting(1)
	for range 3 {
		if r := c.get("/"); r.status != 200 || r.at() == own {
			t.Errorf("%+v", r)
		}
	}
	sum := serving(t, f.name).Summary()
	if sum.Waiting != 1 || sum.WaitingBound != 1 || sum.Target != 2 {
		t.Errorf("%+v", sum)
	}
	time.Sleep(30 * time.Millisecond) // the page would come now
	close(leave)
	if r := waits(); r.status != 200 || r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
	stays()
}

func TestASessionWhoseInstanceIsGoneMoves(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "affinity cookie")
	own, cookie := f.session(c)
	f.die(own)
	f.ready(1)
	r := c.get("/", "Cookie", cookie)
	next := f.cookieOf(r)
	if r.status != 200 || r.at() == own || r.session() != "moved" || next == "" || next == cookie {
		t.Fatalf("%+v", r)
	}
	if again := c.get("/", "Cookie", next); again.at() != r.at() || again.session() != "kept" || f.cookieOf(again) != "" {
		t.Errorf("%+v", again)
	}
	for outcome, want := range map[string]string{"new": "1", "moved": "1", "kept": "1"} {
		if n := sessionsCounted(t, f.name, outcome); n != want {
			t.Errorf("%s: counted %q times", outcome, n)
		}
	}
	if log := logsOf(logName(t)).entries("handled request"); len(log) > 0 && !strings.Contains(fmt.Sprint(log), "session:moved") {
		t.Errorf("%v", log)
	}
}

func sessionsCounted(t *testing.T, service, outcome string) string {
	t.Helper()
	for _, s := range series(t, service) {
		if v, ok := strings.CutPrefix(s, "caddy_usher_sessions_total{outcome="+outcome+"} "); ok {
			return v
		}
	}
	return ""
}

func TestACookieThatIsNotOursIsANewSession(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "affinity cookie")
	g := secondFleet(t)
	other := start(t, site(g.usher("affinity cookie", "header_down X-Session {http.usher.session}")))
	_, foreign := g.session(other)
	own, cookie := f.session(c)
	name, value, _ := strings.Cut(cookie, "=")
	_, foreign, _ = strings.Cut(foreign, "=")
	last := value[len(value)-1:]
	flipped := value[:len(value)-1] + map[bool]string{true: "B", false: "A"}[last == "A"]
	for what, v := range map[string]string{
		"empty":              "",
		"text":               "hello",
		"too short":          value[1:],
		"too long":           value + "A",
		"changed at its end": flipped,
		"changed":            strings.ToUpper(value),
		"of another service": foreign,
		"half a megabyte":    strings.Repeat("A", 1<<19),
		"not base64":         strings.Repeat("!", len(value)),
		"another name":       "; x" + name + "=" + value,
	} {
		if r := c.get("/", "Cookie", name+"="+v); r.status != 200 || r.session() != "new" || f.cookieOf(r) == "" {
			t.Errorf("%s: %d %v", what, r.status, r.header)
		}
	}
	// The first valid one counts, after others of the name.
	if r := c.get("/", "Cookie", name+"=x; "+name+"="+flipped+";"+cookie); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
	many := strings.Repeat(name+"="+flipped+"; ", 10000)
	if r := c.get("/", "Cookie", many+cookie); r.status != 200 || r.session() != "new" {
		t.Errorf("after ten thousand others it was still looked at: %v", r.header)
	}
}

func TestTheAttributesOfTheCookie(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		options string
		header  []string
		want    string
	}{
		"default":            {"affinity cookie s", nil, "; Path=/; HttpOnly; SameSite=Lax"},
		"all":                {"affinity cookie s {\nmax_age 90s\nsame_site strict\npath /x\ndomain example.com\n}", nil, "; Path=/x; Domain=example.com; Max-Age=90; HttpOnly; SameSite=Strict"},
		"other sites":        {"affinity cookie s {\nsame_site none\n}", nil, "; Path=/; HttpOnly; Secure; SameSite=None"},
		"prefix":             {"affinity cookie __Host-s", nil, "; Path=/; HttpOnly; Secure; SameSite=Lax"},
		"said to be secure":  {"affinity cookie s", []string{"X-Forwarded-Proto", "https"}, "; Path=/; HttpOnly; Secure; SameSite=Lax"},
		"said to be no such": {"affinity cookie s", []string{"X-Forwarded-Proto", "http"}, "; Path=/; HttpOnly; SameSite=Lax"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			global := "{\n\tauto_https off\n\tservers {\n\t\ttrusted_proxies static 127.0.0.0/8\n\t}\n}\n:80 {\n"
			c := start(t, global+f.usher(x.options)+"\n}\n")
			set := c.get("/", x.header...).header.Get("Set-Cookie")
			if _, attributes, _ := strings.Cut(set, ";"); ";"+attributes != x.want {
				t.Errorf("%s", set)
			}
		})
	}
}

func TestAClientThatIsNotTrustedCannotSayThatItSpeaksTLS(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 1, "affinity cookie")
	r := c.get("/", "X-Forwarded-Proto", "https")
	if f.cookieOf(r) == "" || strings.Contains(r.header.Get("Set-Cookie"), "Secure") {
		t.Errorf("%q", r.header["Set-Cookie"])
	}
}

func TestACookieWithAnAgeIsSetAnewInTimeAndThenExpires(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "affinity cookie {\nmax_age 4s\n}")
	cookies := serving(t, f.name).Sessions.Load().Cookie
	own, young := f.session(c)
	var hash uint64
	if hash, _ = cookies.Find(http.Header{"Cookie": {young}}, time.Now()); hash == 0 {
		t.Fatal("it does not read its own cookie")
	}
	issued := func(ago time.Duration) string {
		set, err := http.ParseSetCookie(cookies.Set(hash, time.Now().Add(-ago), false))
		if err != nil {
			t.Fatal(err)
		}
		return set.Name + "=" + set.Value
	}
	if r := c.get("/", "Cookie", young); r.at() != own || f.cookieOf(r) != "" {
		t.Errorf("young: %+v", r)
	}
	if r := c.get("/", "Cookie", issued(3*time.Second)); r.at() != own || r.session() != "kept" || f.cookieOf(r) == "" {
		t.Errorf("old: %+v", r)
	}
	if r := c.get("/", "Cookie", issued(6*time.Second)); r.session() != "new" || f.cookieOf(r) == "" {
		t.Errorf("expired: %+v", r)
	}
	if r := c.get("/", "Cookie", issued(-time.Hour)); r.at() != own || r.session() != "kept" {
		t.Errorf("by a clock that is ahead: %+v", r)
	}
}

// The answers of an instance set the cookie, whatever they are; Usher's own, and
// those of handlers in between, are of no instance.
func TestOnlyAnswersOfAnInstanceSetTheCookie(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/500":
				w.WriteHeader(500)
			case "/hints":
				w.Header().Set("Link", "</x>")
				w.WriteHeader(http.StatusEarlyHints)
				_, _ = io.WriteString(w, "hello")
			case "/stream":
				_, _ = io.WriteString(w, "one")
				_ = http.NewResponseController(w).Flush()
				_, _ = io.WriteString(w, "two")
			case "/own":
				w.Header().Set("Set-Cookie", "app=1")
			}
		})
	}
	text := `{"handler":"usher","service":"` + f.name + `","define":{"backend":{"type":"test","fleet":"` + f.name + `"},"affinity":{"cookie":{}},"max_waiting":0}}`
	routes := `{"match":[{"path":["/denied"]}],"handle":[` + text + `,{"handler":"static_response","status_code":401}]},` +
		`{"handle":[` + text + `,{"handler":"reverse_proxy","dynamic_upstreams":{"source":"usher"}}]}`
	c := start(t, `{"apps":{"usher":{},"http":{"servers":{"main":{"listen":[":80"],"automatic_https":{"disable":true},"routes":[`+routes+`]}}}}}`)
	if r := c.get("/"); r.status != 503 || r.header.Get("Set-Cookie") != "" {
		t.Errorf("Usher's own answer: %+v", r)
	}
	f.ready(1)
	for _, path := range []string{"/", "/500", "/hints", "/stream", "/missing"} {
		if r := c.get(path); f.cookieOf(r) == "" {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if r := c.get("/own"); len(r.header["Set-Cookie"]) != 2 || f.cookieOf(r) == "" {
		t.Errorf("beside a cookie of the application: %q", r.header["Set-Cookie"])
	}
	if r := c.get("/denied"); r.status != 401 || r.header.Get("Set-Cookie") != "" {
		t.Errorf("denied on the way: %+v", r)
	}
	if r := c.do("OPTIONS", "/", "", "Origin", "http://a", "Access-Control-Request-Method", "PUT"); r.status != 200 || r.header.Get("Set-Cookie") != "" {
		t.Errorf("a preflight keeps no cookie: %+v", r)
	}
}

func TestAnUpgradeSetsTheCookie(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.handler = func(string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
		})
	}
	c := start(t, site(f.usher("affinity cookie")))
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || len(setCookies(t, resp.Header, "usher_"+f.name)) != 1 {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

func TestTheKeyOfCookiesIsInTheStorageAndNotInTheConfiguration(t *testing.T) {
	t.Parallel()
	f, c := sessionFleet(t, 2, "affinity cookie")
	own, cookie := f.session(c)
	// A reload, with another option: cookies hold, whatever is kept in memory.
	next := start(t, site(f.usher("instances 2", "affinity cookie", "concurrency 7", "header_down X-Session {http.usher.session}")))
	if r := next.get("/", "Cookie", cookie); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
	if key := hub.Latest.Load(); key == nil {
		t.Fatal("no hub")
	}
	found := false
	_ = filepath.WalkDir(storageRoot, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(filepath.ToSlash(path), "usher/affinity/key") {
			info, _ := d.Info()
			found = true
			if info.Size() != 32 || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %d bytes, %v", path, info.Size(), info.Mode())
			}
		}
		return nil
	})
	if !found {
		t.Error("the storage has no key")
	}
}

// A page that waits in the browser has no session yet; meanwhile another page of
// the same browser may have got one.
func TestAPageThatWaitedGoesToTheSessionThatTheBrowserHasGotMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("instances 2", "affinity cookie", "waiting_page {\nafter 0s\n}", "header_down X-Session {http.usher.session}")))
	if r := c.get("/", person...); r.header.Get("Usher-Error") != "waiting_page" {
		t.Fatalf("%+v", r)
	}
	f.up()
	f.ready(2)
	s := serving(t, f.name)
	// Its instance is the one with more load, so that chance does not find it.
	own, cookie := f.session(c)
	busy := new(reserver.Reservation)
	value, _ := s.Sessions.Load().Cookie.Find(http.Header{"Cookie": {cookie}}, time.Now())
	if ok, err := s.Reserver.Reserve(busy, reserver.Ask{Affinity: reserver.ByInstance, Key: value}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer busy.Release(reserver.Neutral)
	if r := c.get("/", append([]string{"Cookie", cookie}, person...)...); r.at() != own || r.session() != "kept" {
		t.Errorf("%+v", r)
	}
}
