package caddymodule

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/admin"
)

// hangingClient is a client that stops reading at the first change of a state,
// until it is let go on.
type hangingClient struct {
	http.ResponseWriter
	hangs, proceed chan struct{}
	got            bytes.Buffer
}

func (c *hangingClient) Flush() {}

func (c *hangingClient) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("event: state")) && c.hangs != nil {
		close(c.hangs)
		c.hangs = nil
		<-c.proceed
	}
	return c.got.Write(p)
}

func TestAnEventStreamWhoseClientIsTooSlowEndsRatherThanLeaveSomethingOut(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	start(t, site(f.usher()))
	s := serving(t, f.name)
	c := &hangingClient{ResponseWriter: httptest.NewRecorder(), hangs: make(chan struct{}), proceed: make(chan struct{})}
	hangs, done := c.hangs, make(chan error, 1)
	go func() {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/usher/events", nil)
		done <- admin.Admin{}.Routes()[0].Handler.ServeHTTP(c, r)
	}()
	suspended := false
	change := func() {
		t.Helper()
		_, more := s.Hub.Activity.After(s.Hub.Activity.Last())
		if suspended = !suspended; suspended {
			s.Loop.Suspend("moving house")
		} else {
			s.Loop.Resume()
		}
		select {
		case <-more:
		case <-time.After(patience):
			t.Fatal("nothing happens")
		}
	}
	for told := false; !told; {
		change()
		select {
		case <-hangs:
			told = true
		default:
		}
	}
	// More than is kept.
	for from := s.Hub.Activity.Last(); s.Hub.Activity.Last() < from+1100; {
		change()
	}
	close(c.proceed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	text := c.got.String()
	if !strings.HasSuffix(text, "event: bye\ndata: {}\n\n") {
		t.Errorf("the stream ends with %.200q", text[max(0, len(text)-200):])
	}
	// What it was told before is whole: one state follows the other.
	before := ""
	for part := range strings.SplitSeq(text, "\n\n") {
		if !strings.Contains(part, `"service":"`+f.name+`"`) || !strings.HasPrefix(part, "event: state") {
			continue
		}
		_, from, _ := strings.Cut(part, `"from":"`)
		from, _, _ = strings.Cut(from, `"`)
		_, to, _ := strings.Cut(part, `"to":"`)
		to, _, _ = strings.Cut(to, `"`)
		if before != "" && from != before {
			t.Errorf("after %s comes %s", before, part)
		}
		before = to
	}
	if before == "" {
		t.Error("no change is told")
	}
}
