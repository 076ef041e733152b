package marathon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The event stream is Usher's own and not go-marathon's, which stays on its
// first member for ever, waits ever longer between attempts and says nothing
// about it, changes CheckRedirect of the client it is given so that
// credentials go to any host that a redirect names, is cut by the time-out
// that the other calls need, misses the base path on DC/OS, drops the events
// of instances, and hands events on in goroutines of their own, out of order
// and without bound.

// eventTypes are the events after which a read may see something new.
var eventTypes = []string{
	"status_update_event", "instance_changed_event", "unknown_instance_terminated_event",
	"instance_health_changed_event", "health_status_changed_event", "unhealthy_instance_kill_event",
	"deployment_info", "deployment_step_success", "deployment_success", "deployment_failed",
	"app_terminated_event",
}

const (
	// streamQuiet is how long a stream may say nothing, heartbeats (every
	// 10 s) included, before it is taken for dead.
	streamQuiet = 25 * time.Second
	// streamPause bounds the pause before the next attempt.
	streamPauseFirst, streamPauseMax = 100 * time.Millisecond, 5 * time.Second
	// streamProven is how long a stream has to live for the next attempt to
	// come at once.
	streamProven = 10 * time.Second
	// streamHops bounds the redirects of one attempt.
	streamHops = 3
	// longestEvent bounds an event that is looked into. One that is longer
	// is taken to concern everybody.
	longestEvent = 1 << 20
)

// listen keeps the event stream open, to one member after the other, until
// the cluster is released.
func (c *cluster) listen() {
	defer close(c.done)
	pause := streamPauseFirst
	for k := 0; ; k++ {
		began := time.Now()
		err := c.stream(c.members[k%len(c.members)])
		if c.ctx.Err() != nil {
			return
		}
		c.streamEnded(err)
		if time.Since(began) > streamProven {
			pause = streamPauseFirst
		}
		if !sleep(c.ctx, time.Duration(float64(pause)*(0.8+0.4*rand.Float64()))) {
			return
		}
		if k%len(c.members) == len(c.members)-1 {
			pause = min(2*pause, streamPauseMax)
		}
	}
}

// stream opens the stream at a member and reads it to its end.
func (c *cluster) stream(m *member) error {
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	// The stream has no time-out as a whole, so it is watched for signs of
	// life, the answer's head among them.
	alive := time.AfterFunc(streamQuiet, func() { cancel(errSilent) })
	defer alive.Stop()
	res, err := c.openStream(ctx, m)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer res.Body.Close()
	if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind != "text/event-stream" {
		return fmt.Errorf("%s: the event stream is of type %q", m.base, res.Header.Get("Content-Type"))
	}
	c.streamBegan(m)
	r := bufio.NewReaderSize(res.Body, 64<<10)
	for {
		line, err := readLine(r, func() { alive.Reset(streamQuiet) })
		if err != nil {
			return causeOf(ctx, err)
		}
		// A line is a whole event: it names its type itself, too.
		if data, ok := strings.CutPrefix(line, "data:"); ok {
			c.event(data)
		}
	}
}

var errSilent = fmt.Errorf("the event stream was silent for %v, heartbeats included", streamQuiet)

func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// readLine returns the next line without its end. For a line that is too
// long it returns "data:", an event that names no app. alive is called for every piece
// that comes in.
func readLine(r *bufio.Reader, alive func()) (string, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		if len(piece) > 0 {
			alive()
		}
		if len(line) <= longestEvent {
			line = append(line, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return "", err
		case len(line) > longestEvent:
			return "data:", nil
		}
		return strings.TrimRight(string(line), "\r\n"), nil
	}
}

// openStream asks a member for the stream, and whom it names as the leader.
// Credentials go along only to members of the configuration.
func (c *cluster) openStream(ctx context.Context, m *member) (*http.Response, error) {
	query := url.Values{"event_type": eventTypes, "plan-format": {"light"}}.Encode()
	target, at := m.base+"/v2/events", m
	for range streamHops {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target+"?"+query, nil)
		if err != nil {
			return nil, err
		}
		// This value alone: Marathon answers others with 405.
		req.Header.Set("Accept", "text/event-stream")
		client := m.client
		if at != nil {
			client = at.client
			if err := at.authorize(req); err != nil {
				return nil, err
			}
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusOK {
			return res, nil
		}
		res.Body.Close()
		to, err := res.Location()
		if res.StatusCode/100 != 3 || err != nil {
			return nil, fmt.Errorf("%s answered with status %d when asked for events", m.base, res.StatusCode)
		}
		if at = c.memberAt(to); at != nil {
			target = at.base + "/v2/events"
			continue
		}
		to.RawQuery, to.Fragment, to.User = "", "", nil
		if c.access.secret() {
			return nil, &strangerError{from: m.base, to: to.Scheme + "://" + to.Host}
		}
		target = to.String()
	}
	return nil, fmt.Errorf("%s: more than %d redirects when asked for events", m.base, streamHops)
}

// strangerError is a redirect that credentials must not follow.
type strangerError struct{ from, to string }

func (e *strangerError) Error() string {
	return fmt.Sprintf("%s names %s as the leader, which is not among the configured urls, so no credentials are sent there; add it to them", e.from, e.to)
}

// memberAt returns the member that a redirect leads to, or nil.
func (c *cluster) memberAt(to *url.URL) *member {
	for _, m := range c.members {
		if u, err := url.Parse(m.base); err == nil && u.Scheme == to.Scheme && u.Host == to.Host {
			return m
		}
	}
	return nil
}

// streamBegan reads everything again, because Marathon does not repeat events
// from before the stream.
func (c *cluster) streamBegan(m *member) {
	c.mu.Lock()
	c.streaming, c.streamErr = true, nil
	again := c.warned
	c.warned = false
	c.mu.Unlock()
	log := c.logger().Debug
	if again {
		log = c.logger().Info
	}
	log("listening to Marathon's events", slog.String("member", m.base))
	c.pokeSearches()
	for _, a := range c.interested("") {
		a.kick()
	}
}

// streamEnded takes note of the loss of the stream. The first attempt to get
// it back goes without words: leaders change.
func (c *cluster) streamEnded(err error) {
	c.mu.Lock()
	warn := !c.streaming && !c.warned && c.streamErr != nil
	lost := c.streaming
	c.streaming, c.streamErr = false, err
	c.warned = c.warned || warn
	c.mu.Unlock()
	switch {
	case warn:
		c.logger().Warn("Marathon's events cannot be had; the apps are read every "+pollBlind.String()+" instead", slog.Any("error", err))
	default:
		c.logger().Debug("the event stream ended", slog.Any("error", err))
	}
	if lost {
		c.pokeSearches()
		for _, a := range c.interested("") {
			a.kick()
		}
	}
}

// event has those apps read that an event names. What the event says is not
// believed: events are late, doubled and out of order, and come before or
// after the same is to be read.
func (c *cluster) event(data string) {
	if changesApps(data) {
		c.pokeSearches()
	}
	for _, id := range concerned(data) {
		for _, a := range c.interested(id) {
			a.kick()
		}
	}
}

// concerned returns the ids of the apps that an event is about; "" is all.
func concerned(data string) []string {
	type step struct {
		Actions []struct {
			App string `json:"app"`
		} `json:"actions"`
	}
	var e struct {
		AppID     string `json:"appId"`
		RunSpecID string `json:"runSpecId"`
		Plan      struct {
			Steps []step `json:"steps"`
		} `json:"plan"`
		CurrentStep step `json:"currentStep"`
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return []string{""}
	}
	var ids []string
	for _, id := range []string{e.AppID, e.RunSpecID} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	for _, s := range append(e.Plan.Steps, e.CurrentStep) {
		for _, a := range s.Actions {
			if a.App != "" {
				ids = append(ids, a.App)
			}
		}
	}
	return ids
}
