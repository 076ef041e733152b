//go:build linux

package cluster

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// person waits with the waiting page.
type person struct {
	t    *testing.T
	name string
}

func (b person) request(c *harness.Caddy, method string) *http.Request {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	b.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, "http://"+c.Addr+"/sleep?d=100ms&who="+b.name, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Host = "127.0.0.1" // all of them have one name
	r.Header.Set("User-Agent", b.name)
	return r
}

// asks wants what there is, as a browser does, and returns the status.
func (b person) asks(c *harness.Caddy) int {
	b.t.Helper()
	r := b.request(c, http.MethodGet)
	r.Header.Set("Accept", "text/html")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	resp, err := c.HTTP1().Do(r)
	if err != nil {
		b.t.Error(err)
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// listens does what the page does. Events come until its turn has come.
func (b person) listens(c *harness.Caddy) (events <-chan string) {
	b.t.Helper()
	r := b.request(c, http.MethodGet)
	r.Header.Set("Usher-Waiting", "1")
	resp, err := c.HTTP1().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	all := make(chan string, 1000)
	go func() {
		defer close(all)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if line := lines.Text(); strings.HasPrefix(line, "event:") || strings.HasPrefix(line, "data:") {
				all <- line
			}
		}
	}()
	return all
}

// awaits waits for an event that has a text.
func (b person) awaits(events <-chan string, text string) {
	b.t.Helper()
	deadline := time.After(soon)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				b.t.Fatalf("%s: the events have ended, without %s", b.name, text)
			}
			if strings.Contains(e, text) {
				return
			}
		case <-deadline:
			b.t.Fatalf("%s: no event with %s", b.name, text)
		}
	}
}

// The page of a visitor listens at another member than the one that has sent it,
// and the request of the visitor comes to a third one. The visitor is served before
// those that came later, at whichever member they wait.
func TestAVisitorKeepsItsPlaceAtAllMembers(t *testing.T) {
	w := newTown(t, 3, "", "instances 1 1", "concurrency 1", "scale queue", "waiting_page {\n\tafter 0s\n}")
	w.start()
	wantAllOK(t, w.each("/"))
	a, b, c := w.caddys[0], w.caddys[1], w.caddys[2]
	inside := a.Send(harness.Request{Path: "/sleep?d=3s"})
	harness.Eventually(t, soon, func() bool { return strings.Contains(c.Admin("GET", "/usher/cluster", "").Body, `"in_use":1`) }, "it is inside")

	first, second := person{t, "first"}, person{t, "second"}
	if status := first.asks(a); status != http.StatusServiceUnavailable {
		t.Fatalf("the first gets %d, want the page", status)
	}
	time.Sleep(50 * time.Millisecond) // so that it came before
	if status := second.asks(b); status != http.StatusServiceUnavailable {
		t.Fatalf("the second gets %d, want the page", status)
	}
	secondHears := second.listens(b)
	second.awaits(secondHears, "state")
	firstHears := first.listens(b) // behind the second, if its place did not come along
	harness.Eventually(t, soon, func() bool { return a.Service("web").Visitors == 2 && b.Service("web").Visitors == 2 }, "both are visitors of one member")
	wantAllOK(t, []harness.Response{inside.Wait(t, soon)})

	first.awaits(firstHears, "event: go")
	for heard := true; heard; {
		select {
		case e := <-secondHears:
			if strings.Contains(e, "event: go") {
				t.Fatal("it was the turn of the second one before")
			}
		default:
			heard = false
		}
	}
	if status := first.asks(c); status != http.StatusOK {
		t.Errorf("the first comes back, and gets %d", status)
	}
	second.awaits(secondHears, "event: go")
	if status := second.asks(a); status != http.StatusOK {
		t.Errorf("the second comes back, and gets %d", status)
	}
	harness.Eventually(t, soon, func() bool { return c.Service("web").Visitors == 0 }, "no place is left")
	w.wantNoMoreThan(1)
}
