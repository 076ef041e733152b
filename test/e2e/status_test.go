package e2e

import (
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

// An old configuration would be kept for as long as a page is open.
func TestStreamsOfTheLiveViewEndWithTheirConfiguration(t *testing.T) {
	c := newCaddy(t)
	cfg := func(title string) harness.Config {
		return harness.Config{Grace: "0", Site: "handle /status {\n\tusher_status {\n\t\ttitle " + title + "\n\t}\n}\nhandle {\n" + webBlock(c, nil) + "\n}"}
	}
	c.Start(cfg("One"))
	bye := func(s *harness.EventStream) {
		t.Helper()
		s.Until(t, soon, func(e harness.Event) bool { return e.Name == "bye" })
	}
	s := c.Stream("/status?stream")
	s.Until(t, soon, func(e harness.Event) bool { return e.Name == "present" })
	c.MustReload(cfg("Two"))
	bye(s)
	s = c.Stream("/status?stream")
	wantOK(t, c.Get("/"))
	s.Until(t, soon, func(e harness.Event) bool { return e.Name == "frame" })
	// Nor does it hold up the exit.
	c.Stop()
	bye(s)
}
