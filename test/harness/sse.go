package harness

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"
)

// An Event is one Server-Sent Event.
type Event struct {
	Name string
	Data string
}

// An EventStream reads Server-Sent Events.
type EventStream struct {
	Response *http.Response

	cancel context.CancelFunc
	events chan Event
}

// Stream opens an event stream of the site: it returns when the header of
// the answer is there, which may take a cold start.
func (c *Caddy) Stream(path string) *EventStream {
	c.t.Helper()
	return c.openStream("http://"+c.Addr+path, nil)
}

func (c *Caddy) openStream(url string, client *http.Client) *EventStream {
	c.t.Helper()
	if client == nil {
		client = c.HTTP1()
	}
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := client.Do(req)
	if err != nil {
		cancel()
		c.t.Fatal(err)
	}
	s := &EventStream{Response: res, cancel: cancel, events: make(chan Event, 4096)}
	go s.read()
	c.t.Cleanup(func() { s.Close() })
	return s
}

func (s *EventStream) read() {
	defer close(s.events)
	var e Event
	lines := bufio.NewScanner(s.Response.Body)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "":
			if e != (Event{}) {
				s.events <- e
			}
			e = Event{}
		case strings.HasPrefix(line, "event:"):
			e.Name = strings.TrimSpace(line[6:])
		case strings.HasPrefix(line, "data:"):
			e.Data += strings.TrimSpace(line[5:])
		}
	}
}

// Next returns the next event; ok is false when the stream has ended.
func (s *EventStream) Next(t testing.TB, timeout time.Duration) (e Event, ok bool) {
	t.Helper()
	select {
	case e, ok := <-s.events:
		return e, ok
	case <-time.After(timeout):
		t.Fatalf("no event within %s", timeout)
		return Event{}, false
	}
}

// Until reads on until an event is accepted, and returns it. The end of the
// stream before that fails the test.
func (s *EventStream) Until(t testing.TB, timeout time.Duration, accept func(Event) bool) Event {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		e, ok := s.Next(t, time.Until(deadline))
		if !ok {
			t.Fatal("the event stream ended")
		}
		if accept(e) {
			return e
		}
	}
}

// Close ends the stream from the client's side.
func (s *EventStream) Close() error {
	s.cancel()
	err := s.Response.Body.Close()
	for range s.events {
		// Let the reader end.
	}
	return err
}
