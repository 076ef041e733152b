package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddy-usher/usher/test/harness"
)

// Whatever a client sends, its request goes to the service of the route that
// it matches, and to the instance that Usher chose.
func TestNothingThatAClientSendsChoosesWhereItsRequestGoes(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{
		Site: "@other header X-Route other\nroute @other {\n" + harness.Usher("other", c.Backend()) + "\n}\n" +
			webBlock(c, nil, "header_up X-Seq {http.request.header.X-Seq}", "header_up X-Usher-Instance {http.usher.instance}"),
	})
	wantOK(t, c.Get("/"))
	web := c.Service("web").InstanceList
	if len(web) != 1 {
		t.Fatalf("%d instances", len(web))
	}
	_, admin, _ := strings.Cut(c.AdminAddr, ":")
	literal := "{env.SECRET_OF_CADDY}{http.usher.address}"
	for _, head := range [][]string{
		{"GET / HTTP/1.1", "Host: other"},
		{"GET / HTTP/1.1", "Host: {http.usher.address}"},
		{"GET http://other/ HTTP/1.1", "Host: other"},
		{"GET http://" + c.AdminAddr + "/config/ HTTP/1.1", "Host: " + c.AdminAddr},
		{"GET http://user:password@127.0.0.1:" + admin + "/ HTTP/1.1", "Host: localhost"},
		{"GET //other/services/other HTTP/1.1", "Host: localhost"},
		{"GET /usher/services/other/wake?service=other&instance=" + web[0].ID + " HTTP/1.1", "Host: localhost"},
		{"GET /{http.usher.service}/%7Bhttp.usher.address%7D HTTP/1.1", "Host: localhost"},
		{"POST /usher/services/web/suspend HTTP/1.1", "Host: localhost", "Content-Length: 2", "X-HTTP-Method-Override: DELETE"},
		{"GET / HTTP/1.1", "Host: localhost", "Usher-Service: other", "Usher-Instance: other", "Usher-Error: suspended", "Usher: other", "X-Usher-Service: other"},
		{"GET / HTTP/1.1", "Host: localhost", "X-Usher-Cmd: /bin/sh", "X-Usher-Instance: forged", "X-Waiter-Cmd: /bin/sh", "X-Waiter-Version: 1"},
		{"GET / HTTP/1.1", "Host: localhost", "X-Forwarded-Host: other", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https", "Forwarded: host=other;for=127.0.0.1"},
		{"GET / HTTP/1.1", "Host: localhost", "Dynamic-Upstreams: usher", "Upstream: " + c.AdminAddr, "X-Accel-Redirect: /config/", "Connection: Usher-Error, X-Seq"},
	} {
		conn := c.Dial()
		conn.Send(strings.Join(append(head, "X-Seq: "+literal, "Connection: close"), "\r\n") + "\r\n\r\n{}")
		r := conn.Receive(soon)
		// What Caddy itself refuses is refused; all else came from web.
		if r.Status/100 == 4 && r.Header.Get("X-Pid") == "" {
			continue
		}
		if r.Err != nil || r.Header.Get("X-Instance") != web[0].ID || r.UsherError() != "" {
			t.Errorf("%q was answered %d by %q: %v %s", head, r.Status, r.Header.Get("X-Instance"), r.Err, r.Body)
		}
	}
	j := c.Journal()
	for _, e := range j.Of("begin")[1:] {
		if e.Instance != web[0].ID || e.Seq != literal && e.Seq != "" {
			t.Errorf("%q came to %s, %q of its header", e.Path, e.Instance, e.Seq)
		}
	}
	if s := c.Service("other"); s.State != "asleep" || s.ColdStarts != 0 || j.Starts() != 1 {
		t.Errorf("the other service is %s after %d starts in all", s.State, j.Starts())
	}
	if s := c.Service("web"); s.State != "awake" {
		t.Errorf("the service is %s", s.State)
	}
}

// The admin API makes no service, no command and no more instances than the
// configuration allows, and is not open to other sites in a browser.
func TestAdminDoesNothingThatAConfigWouldNotAllow(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 1", "idle_timeout 1h", "scale queue"))
	before := c.Service("web").Config

	evil := `{"backend":{"type":"process","command":["/bin/sh","-c","touch ` + c.Path("evil") + `"]},"instances":{"min":5,"max":9},"reason":"x"}`
	for _, call := range []struct{ method, path string }{
		{"POST", "services"},
		{"PUT", "services/web"},
		{"PATCH", "services/web"},
		{"POST", "services/web"},
		{"DELETE", "services/web"},
		{"POST", "services/new"},
		{"PUT", "services/new"},
		{"POST", "services/web/wake"},
		{"POST", "services/web/restart"},
		{"POST", "services/web/suspend"},
		{"POST", "services/web/instances"},
		{"POST", "services/web/scale"},
		{"DELETE", "services/web/instances/../../../config"},
		{"POST", "services/..%2fweb/wake"},
		{"POST", "services/web%00/wake"},
	} {
		if r := c.Admin(call.method, "/usher/"+call.path, evil); r.Status/100 != 4 && r.Status/100 != 3 {
			t.Errorf("%s %s: %d %v %s", call.method, call.path, r.Status, r.Err, r.Body)
		}
	}
	if n := c.Count(); n != 0 || len(c.Services()) != 1 {
		t.Errorf("%d processes, services %+v", n, c.Services())
	}

	// A page of another site has its browser ask, and so does a name that was
	// made to point here.
	for name, header := range map[string]string{
		"another origin": "Origin: https://evil.example", "no origin": "Origin: null", "no-cors": "Sec-Fetch-Mode: no-cors", "another host": "Host: evil.example",
	} {
		r := adminRaw(t, c, "POST /usher/services/web/suspend", header, `{"reason":"x"}`)
		if r.Status/100 != 4 {
			t.Errorf("%s: %d %v %s", name, r.Status, r.Err, r.Body)
		}
	}
	if s := c.Service("web"); s.State != "asleep" {
		t.Errorf("the service is %s", s.State)
	}

	// However often it is woken, there is one.
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { c.Admin("POST", "/usher/services/web/wake", "") })
	}
	all.Wait()
	c.AwaitReady("web", 1, soon)
	for range 5 {
		c.Post("web/wake", "")
	}
	wantOK(t, c.Get("/"))
	if n := c.Journal().Starts(); n != 1 {
		t.Errorf("%d were started where one is allowed", n)
	}
	if after := c.Service("web").Config; fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the configuration was %v and is %v", before, after)
	}
	if _, err := os.Stat(c.Path("evil")); err == nil {
		t.Error("a command was executed")
	}
}

// adminRaw makes a call of the admin API with one header of its own.
func adminRaw(t *testing.T, c *harness.Caddy, call, header, body string) harness.Response {
	t.Helper()
	name, value, _ := strings.Cut(header, ": ")
	req, err := http.NewRequest(strings.Fields(call)[0], "http://"+c.AdminAddr+strings.Fields(call)[1], strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if name == "Host" {
		req.Host = value
	}
	req.Header.Set(name, value)
	res, err := c.HTTP1().Do(req)
	if err != nil {
		return harness.Response{Err: err}
	}
	defer res.Body.Close()
	return harness.Response{Status: res.StatusCode, Header: res.Header}
}

// A process that writes what would do harm in a log, a terminal, a page or a
// stream before it fails is quoted there, and nothing more.
func TestAProcessCannotForgeWhatIsSaidOfIt(t *testing.T) {
	c := newCaddy(t)
	script := `printf '%b' '\033[2J\033]0;title\007red\r\nSet-Cookie: x=1\r\n\r\n<script>alert(1)</script>\n{"level":"error","msg":"forged"}\n` +
		`event: bye\ndata: {"forged":1}\n\nhalf\rother\0377\0302\0233 \0342\0200\0256 end\0'; exit 3`
	console := c.Path("console.log")
	cfg := harness.Config{
		Global: "log console {\n\toutput file " + console + "\n\tformat console {\n\t\tlevel_format lower\n\t}\n\tlevel DEBUG\n}",
		Site:   "log\n" + harness.Usher("web", c.Command("", "/bin/sh", "-c", script), "error_detail full", "wait_timeout 20s"),
		Debug:  true,
	}
	c.Start(cfg)
	events := c.Events()

	r, p := askProblem(t, c, "/")
	wantRefusal(t, r, "start_failed")
	if !strings.Contains(p.Detail, `\x1b[2J`) || !strings.Contains(p.Detail, "<script>") || !strings.Contains(p.Detail, `half\rother`) {
		t.Errorf("the detail is %q", p.Detail)
	}
	answers := []harness.Response{r}
	for _, accept := range []string{"text/html", "text/plain"} {
		r := c.Do(harness.Request{Header: http.Header{"Accept": {accept}}})
		wantRefusal(t, r, "start_failed")
		answers = append(answers, r)
		if !strings.Contains(r.Body, "forged") {
			t.Errorf("%s: the detail is missing: %q", accept, r.Body)
		}
		if accept == "text/html" && strings.Contains(r.Body, "<script>") {
			t.Errorf("the page has a script: %s", r.Body)
		}
		if accept == "text/plain" && strings.Count(r.Body, "\n") != 1 {
			t.Errorf("more than a line: %q", r.Body)
		}
	}
	for _, r := range answers {
		quoted(t, "an answer", r.Body)
		for name, values := range r.Header {
			quoted(t, "a header", name+": "+strings.Join(values, ""))
			if name == "Set-Cookie" || strings.Contains(strings.Join(values, ""), "title") {
				t.Errorf("%s: %q", name, values)
			}
		}
	}

	detail := c.Admin("GET", "/usher/services/web", "")
	if s := c.Service("web"); s.LastError == nil || detail.Status != 200 {
		t.Errorf("%d %s", detail.Status, detail.Body)
	}
	quoted(t, "the admin API", detail.Body)
	for {
		e, ok := events.Next(t, soon)
		if !ok || e.Name == "bye" || !json.Valid([]byte(e.Data)) || strings.Contains(e.Name, "forged") {
			t.Fatalf("event %q: %q", e.Name, e.Data)
		}
		if e.Name == "state" && strings.Contains(e.Data, `"failing"`) {
			break
		}
	}

	harness.Eventually(t, soon, func() bool { return c.Logged("end") && c.Logged("start failed") }, "the output is logged")
	for line := range strings.Lines(c.RawLog()) {
		if !json.Valid([]byte(line)) || strings.HasPrefix(line, `{"level":"error","msg":"forged"`) {
			t.Errorf("the log has a line %q", line)
		}
		quoted(t, "the log", strings.TrimSuffix(line, "\n"))
	}
	text, err := os.ReadFile(console)
	if err != nil || !strings.Contains(string(text), `\x1b[2J`) {
		t.Errorf("%v: %q", err, text)
	}
	for line := range strings.Lines(string(text)) {
		quoted(t, "the log for people", strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", " "))
		if strings.HasPrefix(line, "{") || strings.HasPrefix(line, "event:") {
			t.Errorf("the log for people has a line %q", line)
		}
	}
}

// quoted checks that a text does nothing where it is shown.
func quoted(t *testing.T, where, text string) {
	t.Helper()
	acts := func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r)
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, acts) {
		t.Errorf("%s has %q", where, text)
	}
}

// A client that sends or reads slowly has its slots; the others have theirs.
func TestSlowClientsTakeNothingButTheirOwnSlots(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "concurrency 3", "instances 0 1", "wait_timeout 20s"))
	wantOK(t, c.Get("/"))

	upload := c.Dial() // a body that never comes
	upload.SendHead("POST", "/echo", "Content-Length: 1000000")
	upload.Send("x")
	deaf := c.Dial() // an answer that is never read, larger than what fits between
	body := strings.Repeat("x", 32<<20)
	deaf.SendHead("POST", "/echo", fmt.Sprintf("Content-Length: %d", len(body)))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = deaf.Write([]byte(body))
	}()
	defer func() { deaf.Abort(); <-sent }()
	inside(t, c, 3)
	head := c.Dial() // a request whose head never ends has no slot at all
	head.Send("GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")

	for range 50 {
		r := c.Get("/")
		wantOK(t, r)
		if r.Took > harness.Slow(5*time.Second) {
			t.Errorf("an answer took %s", r.Took)
		}
	}
	if n := c.Service("web").Slots.InUse; n != 2 {
		t.Errorf("%d slots are in use by two slow clients", n)
	}
	upload.Abort()
	deaf.Abort()
	harness.Eventually(t, soon, func() bool { return c.Service("web").Slots.InUse == 0 }, "the slots are free again")
}

// One client with thousands of requests fills the line up to max_waiting and
// no further; it takes no place before anyone else's, and leaves when it goes.
func TestGreedyClientTakesPlacesInTheLineAndNoMore(t *testing.T) {
	c := newCaddy(t)
	const places, greedy = 40, 200
	cfg := web(c, args("-gate", c.Path("gate")), "max_waiting "+fmt.Sprint(places), "wait_timeout 60s", "concurrency 1000")
	c.Start(cfg)
	first := c.Send(harness.Request{Path: "/first"})
	c.AwaitWaiting("web", 1)

	conns := make([]*harness.Conn, greedy)
	for k := range conns {
		conns[k] = c.Dial()
		conns[k].SendHead("POST", "/echo", "Content-Length: 60000")
		conns[k].Send("x")
	}
	c.AwaitWaiting("web", places)
	refused := make([]bool, greedy)
	var all sync.WaitGroup
	for k, conn := range conns {
		all.Go(func() {
			r := conn.Receive(harness.Slow(2 * time.Second))
			refused[k] = r.Err == nil && r.UsherError() == "queue_full"
		})
	}
	all.Wait()
	n := 0
	for _, is := range refused {
		if is {
			n++
		}
	}
	if n != greedy-places+1 {
		t.Errorf("%d of %d were refused where %d places were left", n, greedy, places-1)
	}

	// Its place is free as soon as it is gone, though its body never came.
	conns[slices.Index(refused, false)].Abort()
	c.AwaitWaiting("web", places-1)
	next := c.Send(harness.Request{Path: "/next"})
	c.AwaitWaiting("web", places)
	wantRefusal(t, c.Get("/late"), "queue_full")
	if first.Done() || next.Done() {
		t.Error("a waiting request was rejected")
	}
	c.Open("gate")
	wantOK(t, first.Wait(t, soon))
	wantOK(t, next.Wait(t, soon))
	for _, conn := range conns {
		conn.Abort()
	}
	harness.Eventually(t, soon, func() bool {
		s := c.Service("web")
		return s.Slots.InUse == 0 && s.Waiting == 0
	}, "no request is inside or waits")
}
