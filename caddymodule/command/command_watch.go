package command

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

const (
	// watchPause is the time between two tries to reach an admin server that
	// is being replaced, and watchTries how many there are.
	watchPause = 250 * time.Millisecond
	watchTries = 40

	// eventMax bounds one event. A longer one is not Usher's.
	eventMax = 4 << 20
)

// watched is the data of any event of the stream.
type watched struct {
	Service  string    `json:"service"`
	Time     time.Time `json:"time"`
	From     any       `json:"from"`
	To       any       `json:"to"`
	Reason   string    `json:"reason"`
	ID       string    `json:"id"`
	Address  string    `json:"address"`
	State    string    `json:"state"`
	Revision string    `json:"revision"`
}

// watch prints what happens until it is interrupted. It outlives reloads.
func (c *console) watch(names []string) error {
	for _, name := range names {
		if _, err := c.ask(http.MethodGet, servicePath(name), nil, nil); err != nil {
			return err
		}
	}
	resp, err := c.call(http.MethodGet, "events", nil)
	if err != nil {
		return err
	}
	if err := c.watching(names); err != nil {
		_ = resp.Body.Close()
		return err
	}
	for {
		err := c.follow(resp.Body, names)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if resp, err = c.callAgain("events"); err != nil {
			return err
		}
	}
}

// watching says what is watched: events may take a while to come.
func (c *console) watching(names []string) error {
	if c.json {
		return nil
	}
	n := len(slices.Compact(slices.Sorted(slices.Values(names))))
	if len(names) == 0 {
		var all []hub.ServiceSummary
		if _, err := c.ask(http.MethodGet, "services", nil, &all); err != nil {
			return err
		}
		n = len(all)
	}
	return c.print("watching %s\n", hub.Several(n, "service"))
}

// eachEvent calls do for each event of a stream until `bye`, or the end of the
// stream. That is no error: the admin server may have been replaced.
func eachEvent(stream io.Reader, do func(name string, data []byte) error) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, eventMax)
	name := ""
	for lines.Scan() {
		line := lines.Text()
		if event, ok := strings.CutPrefix(line, "event: "); ok {
			name = event
			continue
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		if name == answer.Bye.Name {
			return nil
		}
		if err := do(name, []byte(data)); err != nil {
			return err
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("the event stream is not Usher's: %w", err)
	}
	return nil
}

// follow prints one event stream.
func (c *console) follow(stream io.Reader, names []string) error {
	width := 0
	return eachEvent(stream, func(name string, data []byte) error {
		var e watched
		if name == "service" {
			var s hub.ServiceSummary
			if err := json.Unmarshal(data, &s); err != nil {
				return fmt.Errorf("the event stream is not Usher's: %w", err)
			}
			e.Service = s.Name
			width = max(width, len(s.Name))
		} else if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("the event stream is not Usher's: %w", err)
		}
		if len(names) > 0 && !slices.Contains(names, e.Service) {
			return nil
		}
		switch {
		case c.json:
			return c.print("%s\n", harmlessJSON(fmt.Sprintf(`{"event":%q,"data":%s}`, name, data)))
		case name != "service":
			return c.print("%s  %-*s  %s\n", c.clock(e.Time), width, harmless(e.Service), harmless(c.happened(name, e)))
		}
		return nil
	})
}

// happened says what an event tells.
func (c *console) happened(event string, e watched) string {
	switch event {
	case "state":
		words := fmt.Sprintf("is %v, was %v", e.To, e.From)
		if e.To == string(control.Failing) {
			var s hub.ServiceSummary
			if _, err := c.ask(http.MethodGet, servicePath(e.Service), nil, &s); err == nil && s.LastError != nil {
				words += ": " + *s.LastError
			}
		}
		return words
	case "target":
		return fmt.Sprintf("wants %v (was %v): %s", e.To, e.From, e.Reason)
	case "instance":
		is := "is"
		if e.State == string(control.InstanceEnded) {
			is = "has"
		}
		words := fmt.Sprintf("instance %s %s %s", e.ID, is, e.State)
		if e.Address != "" {
			words += " at " + e.Address
		}
		return words
	}
	return event
}
