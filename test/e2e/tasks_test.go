package e2e

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// asyncBlock is the option async with options of its own.
func asyncBlock(options ...string) string { return "async {\n" + strings.Join(options, "\n") + "\n}" }

// later sends a request that is to be stored.
func later(c *harness.Caddy, method, path, body string, header ...string) harness.Response {
	h := http.Header{"Prefer": {"respond-async"}}
	for k := 0; k < len(header); k += 2 {
		h.Set(header[k], header[k+1])
	}
	return c.Do(harness.Request{Method: method, Path: path, Header: h, Body: strings.NewReader(body)})
}

// accepted checks for the answer to a request that was stored.
func accepted(t *testing.T, r harness.Response) (s harness.Task) {
	t.Helper()
	if r.Err != nil || r.Status != http.StatusAccepted {
		t.Fatalf("status %d, error %v, body %q; want 202", r.Status, r.Err, r.Body)
	}
	if err := json.Unmarshal([]byte(r.Body), &s); err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	if r.Header.Get("Location") != s.URL || !strings.HasSuffix(s.URL, "/.usher/tasks/"+s.ID) || r.Header.Get("Retry-After") == "" {
		t.Errorf("the header is %v, the task %+v", r.Header, s)
	}
	return s
}

// look returns the status of a task, and the answer that told it.
func look(t *testing.T, c *harness.Caddy, url string) (harness.Task, harness.Response) {
	t.Helper()
	r := c.Get(url)
	var s harness.Task
	if err := json.Unmarshal([]byte(r.Body), &s); r.Err != nil || err != nil {
		t.Fatalf("status %d, errors %v, %v: %s", r.Status, r.Err, err, r.Body)
	}
	return s, r
}

// ends waits until a task has ended.
func ends(t *testing.T, c *harness.Caddy, url, state string) (harness.Task, harness.Response) {
	t.Helper()
	var s harness.Task
	var r harness.Response
	harness.Eventually(t, soon, func() bool {
		s, r = look(t, c, url+"?wait=5")
		return s.State == state
	}, "task %s is %s, it is %+v", url, state, &s)
	return s, r
}

func TestG15_AStoredRequestIsExecutedAndItsResultKept(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	r := later(c, "POST", "/echo?x=1", "hello", "Content-Type", "text/plain", "Authorization", "secret")
	s := accepted(t, r)
	if r.Header.Get("Preference-Applied") != "respond-async" || s.Service != "web" || s.State != "pending" {
		t.Errorf("the header is %v, the task %+v", r.Header, s)
	}
	done, r := ends(t, c, s.URL, "done")
	if r.Status != http.StatusSeeOther || r.Header.Get("Location") != s.URL+"/result" || done.Status != 200 || done.Size != 5 || done.Attempts != 1 {
		t.Errorf("status %d, header %v, the task %+v", r.Status, r.Header, done)
	}
	if r := c.Get(s.URL + "/result"); r.Status != 200 || r.Body != "hello" || r.Header.Get("X-Method") != "POST" {
		t.Errorf("the result: status %d, body %q, header %v", r.Status, r.Body, r.Header)
	}
	// Others are as before.
	if r := c.Do(harness.Request{Method: "POST", Path: "/echo", Body: strings.NewReader("now")}); r.Status != 200 || r.Body != "now" {
		t.Errorf("status %d, body %q", r.Status, r.Body)
	}
	r = c.Do(harness.Request{Path: "/.usher/tasks/" + strings.Repeat("0", 48)})
	if r.Status != http.StatusNotFound {
		t.Errorf("an unknown task: status %d, body %s", r.Status, r.Body)
	}
	r = c.Do(harness.Request{Method: "POST", Path: s.URL})
	if r.Status != http.StatusMethodNotAllowed {
		t.Errorf("POST to a task: status %d", r.Status)
	}
}

func TestAClientMayWaitForTheResult(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	r := later(c, "POST", "/echo", "hello", "Prefer", "respond-async, wait=30")
	if r.Status != 200 || r.Body != "hello" || r.Header.Get("Preference-Applied") != "respond-async" || r.Header.Get("Usher-Task") == "" {
		t.Errorf("status %d, body %q, header %v", r.Status, r.Body, r.Header)
	}
	began := time.Now()
	s := accepted(t, later(c, "GET", hold(c, "gate"), "", "Prefer", "wait=1, respond-async"))
	if took := time.Since(began); took < time.Second {
		t.Errorf("it took %v, want 1s", took)
	}
	c.Open("gate")
	ends(t, c, s.URL, "done")
}

func TestAnIdempotencyKeyStandsForOneRequest(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	first := accepted(t, later(c, "POST", "/echo", "a", "Idempotency-Key", "k"))
	if again := accepted(t, later(c, "POST", "/echo", "a", "Idempotency-Key", "k")); again.ID != first.ID {
		t.Errorf("the same request is task %s, and was %s", again.ID, first.ID)
	}
	for _, other := range []harness.Response{
		later(c, "POST", "/echo", "b", "Idempotency-Key", "k"), later(c, "PUT", "/echo", "a", "Idempotency-Key", "k"), later(c, "POST", "/echo?y", "a", "Idempotency-Key", "k"),
	} {
		if other.Status != http.StatusUnprocessableEntity {
			t.Errorf("another request: status %d, body %s", other.Status, other.Body)
		}
	}
	if r := later(c, "POST", "/echo", "a", "Idempotency-Key", strings.Repeat("k", 1000)); r.Status != http.StatusBadRequest {
		t.Errorf("a long key: status %d", r.Status)
	}
	ends(t, c, first.URL, "done")
	if n := len(c.Journal().Of("begin")); n != 1 {
		t.Errorf("%d requests were executed, want 1", n)
	}
}

func TestStoredRequestsHaveLimits(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", asyncBlock("max_body 1kB", "max_tasks 2", "max_result 1kB", "attempts 1")))
	if r := later(c, "POST", "/echo", strings.Repeat("x", 1001)); r.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body that is too large: status %d, %s", r.Status, r.Body)
	}
	accepted(t, later(c, "GET", hold(c, "gate"), ""))
	large := accepted(t, later(c, "GET", "/bulk?n=1001", ""))
	r := later(c, "POST", "/echo", strings.Repeat("x", 1000))
	if r.Status != http.StatusServiceUnavailable || !strings.Contains(r.Body, "max_tasks") || r.Header.Get("Retry-After") == "" {
		t.Errorf("one more than max_tasks: status %d, %s", r.Status, r.Body)
	}
	c.Open("gate")
	if s, _ := ends(t, c, large.URL, "dead"); !strings.Contains(s.Reason, "max_result") || s.Result != "" {
		t.Errorf("an answer that is too large: %+v", s)
	}
}

func TestAFailedRequestIsSentAgain(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, asyncBlock("attempts 3", "backoff 100ms 200ms", "retry_on 503")))
	s := accepted(t, later(c, "GET", "/status?code=503", ""))
	dead, _ := ends(t, c, s.URL, "dead")
	if dead.Attempts != 3 || dead.Status != 503 || !strings.Contains(dead.Reason, "503") {
		t.Errorf("the task is %+v", dead)
	}
	if r := c.Get(dead.Result); r.Status != 503 || !strings.Contains(r.Body, "Service Unavailable") {
		t.Errorf("the result: status %d, body %q", r.Status, r.Body)
	}
	lost := accepted(t, later(c, "GET", "/abort", ""))
	if dead, _ := ends(t, c, lost.URL, "dead"); dead.Attempts != 3 || dead.Status != 0 {
		t.Errorf("after answers that were cut off the task is %+v", dead)
	}
	broken := accepted(t, later(c, "GET", "/reset", ""))
	if dead, _ := ends(t, c, broken.URL, "dead"); !strings.HasPrefix(dead.Reason, "the request to the instance failed: ") || strings.Contains(dead.Reason, "reverseproxy") {
		t.Errorf("after connections that broke the task is %+v", dead)
	}
	failed := accepted(t, later(c, "GET", "/status?code=404", ""))
	if s, _ := ends(t, c, failed.URL, "failed"); s.Attempts != 1 || s.Status != 404 {
		t.Errorf("the task is %+v", s)
	}
}

func TestAStoredRequestIsCancelled(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", "async"))
	running := accepted(t, later(c, "GET", hold(c, "gate"), ""))
	inside(t, c, 1)
	waits := accepted(t, later(c, "GET", "/", ""))
	if r := c.Do(harness.Request{Method: "DELETE", Path: waits.URL}); r.Status != http.StatusNoContent {
		t.Errorf("a task that waits: status %d, %s", r.Status, r.Body)
	}
	if r := c.Do(harness.Request{Method: "DELETE", Path: running.URL}); r.Status != http.StatusAccepted {
		t.Errorf("a task that runs: status %d, %s", r.Status, r.Body)
	}
	ends(t, c, running.URL, "cancelled")
	harness.Eventually(t, soon, func() bool { return len(c.Journal().Of("end")) == 1 }, "the instance has lost its request")
	if r := c.Do(harness.Request{Method: "DELETE", Path: running.URL}); r.Status != http.StatusConflict {
		t.Errorf("a task that has ended: status %d, %s", r.Status, r.Body)
	}
	wantOK(t, c.Get("/"))
	if n := len(c.Journal().Of("begin")); n != 2 {
		t.Errorf("%d requests have entered an instance, want 2", n)
	}
}

func TestRequestsGoBeforeTasks(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", "max_waiting 5", "async"))
	first := c.Send(harness.Request{Path: hold(c, "gate")})
	inside(t, c, 1)
	var last harness.Task
	for range 20 { // more than may wait
		last = accepted(t, later(c, "GET", "/?task", ""))
	}
	request := c.Send(harness.Request{Path: "/?request"})
	c.AwaitWaiting("web", 1)
	c.Open("gate")
	wantOK(t, first.Wait(t, soon))
	wantOK(t, request.Wait(t, soon))
	ends(t, c, last.URL, "done")
	if j := c.Journal().Of("begin"); j[1].Path != "/" || j.MaxInside() != 1 || len(j) != 22 {
		t.Errorf("%d have entered, at most %d at a time: %+v", len(j), j.MaxInside(), j)
	}
}

func TestTasksOfASuspendedServiceWait(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	c.Post("web/suspend", "")
	s := accepted(t, later(c, "POST", "/echo", "x"))
	if now, _ := look(t, c, s.URL+"?wait=2"); now.State != "pending" || now.Attempts != 0 {
		t.Errorf("the task is %+v", now)
	}
	c.Post("web/resume", "")
	ends(t, c, s.URL, "done")
}

func TestTheTasksOfAGroupAreExecutedInOrder(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 0 3", "concurrency 4", asyncBlock("group {header.X-Group}", "headers X-Seq")))
	const groups, count = 3, 30
	var all []harness.Task
	for k := range count {
		r := later(c, "GET", "/sleep?d=5ms", "", "X-Group", strconv.Itoa(k%groups), "X-Seq", strconv.Itoa(k))
		all = append(all, accepted(t, r))
	}
	for _, s := range all {
		ends(t, c, s.URL, "done")
	}
	latest, inside := [groups]int{-1, -1, -1}, [groups]bool{}
	for _, e := range c.Journal() {
		seq, err := strconv.Atoi(e.Seq)
		if err != nil {
			continue // no request
		}
		group := seq % groups
		switch e.Event {
		case "begin":
			if inside[group] || seq <= latest[group] {
				t.Errorf("task %d begins after %d, while one of its group is executed: %t", seq, latest[group], inside[group])
			}
			latest[group], inside[group] = seq, true
		case "end":
			inside[group] = false
		}
	}
	if latest != [groups]int{count - 3, count - 2, count - 1} {
		t.Errorf("the last ones were %v", latest)
	}
}

func TestTheStoreBelongsToOneCaddy(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	other := harness.New(t)
	other.Setenv("XDG_DATA_HOME", c.Path("data"))
	if err := other.TryStart(web(other, nil, "async")); err == nil {
		t.Error("a second Caddy uses the same store")
	}
	// A reload keeps it.
	c.MustReload(web(c, nil, "instances 0 2", "async"))
	ends(t, c, accepted(t, later(c, "POST", "/echo", "x")).URL, "done")
}

func TestATaskIsFollowedByEvents(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	s := accepted(t, later(c, "GET", hold(c, "gate"), ""))
	follow := c.Send(harness.Request{Path: s.URL, Header: http.Header{"Accept": {"text/event-stream"}}})
	inside(t, c, 1)
	c.Open("gate")
	r := follow.Wait(t, soon)
	if r.Status != 200 || !strings.Contains(r.Body, `"state":"running"`) || !strings.Contains(r.Body, `"state":"done"`) || !strings.HasSuffix(r.Body, "event: bye\ndata: {}\n\n") {
		t.Errorf("status %d, body %s", r.Status, r.Body)
	}
}

func TestCommandsOperateTasks(t *testing.T) {
	c := newCaddy(t)
	c.Start(harness.Config{Global: "metrics", Site: "metrics /metrics\n" + webBlock(c, nil, "instances 1", "concurrency 1", asyncBlock("attempts 1"))})
	want := func(line, says string, status int) string {
		t.Helper()
		out, got := usher(c, strings.Fields("tasks "+line)...)
		if got != status || !strings.Contains(out, says) {
			t.Errorf("%s: status %d, want %d with %q:\n%s", line, got, status, says, out)
		}
		return out
	}
	dead := accepted(t, later(c, "GET", "/status?code=503", ""))
	ends(t, c, dead.URL, "dead")
	running := accepted(t, later(c, "GET", hold(c, "gate"), ""))
	inside(t, c, 2)
	waits := accepted(t, later(c, "GET", "/", ""))
	harness.Eventually(t, soon, func() bool { out, _ := usher(c, "list"); return strings.Contains(out, "0 + 1 task") }, "the list of services has the task")
	for _, id := range []string{dead.ID, running.ID, waits.ID} {
		want("list", id, 0)
		want("show "+id, "web", 0)
	}
	want("show "+dead.ID, "status 503", 0)
	if out := want("list --state dead -s web", dead.ID, 0); strings.Contains(out, waits.ID) {
		t.Errorf("the list of the dead has one that waits:\n%s", out)
	}
	want("list --state sleepy", "no state", 5)
	want("show 0123", "no such task", 4)
	want("purge "+waits.ID, "has not ended", 5)
	want("retry "+waits.ID, "has not ended", 5)
	want("cancel "+dead.ID, "has ended", 5)
	want("retry", "--state", 1)
	want("retry --state dead", "1 task", 0)
	want("cancel "+running.ID, "1 task", 0)
	ends(t, c, running.URL, "cancelled")
	ends(t, c, waits.URL, "done")
	ends(t, c, dead.URL, "dead")
	scraped := c.Metrics("caddy_usher_task")
	for series, value := range map[string]string{
		`caddy_usher_tasks{service="web",state="dead"}`: "1", `caddy_usher_tasks{service="web",state="done"}`: "1",
		`caddy_usher_task_attempts_total{service="web",state="dead"}`: "2", `caddy_usher_task_duration_seconds_count{service="web"}`: "4",
	} {
		if scraped[series] != value {
			t.Errorf("%s is %q, want %s: %v", series, scraped[series], value, scraped)
		}
	}
	want("purge -s web", "3 tasks", 0)
	if r := c.Get(dead.URL); r.Status != http.StatusNotFound {
		t.Errorf("a task that was removed: status %d", r.Status)
	}
}

func TestABrowserSeesATaskAsAPage(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "instances 1", "concurrency 1", "async"))
	seen := func(s harness.Task, language string) harness.Response {
		t.Helper()
		r := c.Do(harness.Request{Path: s.URL, Header: http.Header{
			"Accept": {"text/html,application/xhtml+xml,*/*;q=0.8"}, "Accept-Language": {language}, "Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Dest": {"document"},
		}})
		policy := r.Header.Get("Content-Security-Policy")
		if r.Status != http.StatusOK || r.Header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.HasPrefix(policy, "default-src 'none'") ||
			strings.Contains(policy, "script-src") || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("status %d, header %v", r.Status, r.Header)
		}
		return r
	}
	running := accepted(t, later(c, "GET", hold(c, "gate"), ""))
	inside(t, c, 1)
	accepted(t, later(c, "GET", "/", ""))
	last := accepted(t, later(c, "POST", "/echo?a=1", "hello"))
	r := seen(last, "en")
	if !strings.Contains(r.Body, "Waiting for its turn") || !strings.Contains(r.Body, "One other is before you.") || r.Header.Get("Refresh") != "3;url=./"+last.ID {
		t.Errorf("header %v, the page:\n%s", r.Header, r.Body)
	}
	if r := seen(running, "de-AT"); !strings.Contains(r.Body, "In Arbeit") || !strings.Contains(r.Body, "Versuche: 1") || r.Header.Get("Content-Language") != "de" {
		t.Errorf("header %v, the page:\n%s", r.Header, r.Body)
	}
	c.Open("gate")
	ends(t, c, last.URL, "done") // as before for what is no browser
	r = seen(last, "en")
	if !strings.Contains(r.Body, `href="./`+last.ID+`/result"`) || r.Header.Get("Refresh") != "" {
		t.Errorf("header %v, the page:\n%s", r.Header, r.Body)
	}
}

func TestTheProgressOfATaskIsTold(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, nil, "async"))
	s := accepted(t, later(c, "GET", "/progress?percent=40&gate="+c.Path("gate"), ""))
	harness.Eventually(t, soon, func() bool {
		s, _ = look(t, c, s.URL)
		return s.State == "running" && s.Progress != nil && *s.Progress == 40
	}, "the task is at 40 percent, it is %+v", &s)
	c.Open("gate")
	if s, _ = ends(t, c, s.URL, "done"); s.Progress != nil {
		t.Errorf("a task that is done is at %d percent", *s.Progress)
	}
}
