package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// logOptions are the flags of `caddy usher logs`.
type logOptions struct {
	follow   bool
	lines    int
	instance string
}

// logsShown is how many lines are shown unless the command says otherwise.
const logsShown = 100

// logs prints the latest lines that a service's instances wrote, and with
// --follow all that come, across reloads.
func (c *console) logs(names []string) error {
	q := url.Values{"lines": {strconv.Itoa(c.log.lines)}}
	if c.log.lines < 0 {
		return fmt.Errorf("--lines is %d, but cannot be negative", c.log.lines)
	}
	if c.log.instance != "" {
		q.Set("instance", c.log.instance)
	}
	path := servicePath(names[0], "logs")
	if c.log.follow {
		return c.followLogs(path, q)
	}
	var lines []hub.OutputLine
	raw, err := c.ask(http.MethodGet, path+"?"+q.Encode(), nil, &lines)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	for _, l := range lines {
		if err := c.printLine(l); err != nil {
			return err
		}
	}
	return nil
}

func (c *console) printLine(l hub.OutputLine) error {
	return c.print("%s  %s  %s\n", c.clock(l.Time), harmless(l.Instance), harmless(l.Text))
}

// followLogs prints lines until it is interrupted, or the service is gone.
func (c *console) followLogs(path string, q url.Values) error {
	q.Set("follow", "")
	resp, err := c.call(http.MethodGet, path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	for {
		last, err := c.printLogs(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if last > 0 {
			q.Set("after", strconv.FormatUint(last, 10))
			q.Del("lines") // all that came meanwhile
		}
		if resp, err = c.callAgain(path + "?" + q.Encode()); err != nil {
			return err
		}
	}
}

// callAgain opens a stream again after its end: the admin server may just be
// being replaced.
func (c *console) callAgain(path string) (*http.Response, error) {
	for try := 1; ; try++ {
		time.Sleep(watchPause)
		resp, err := c.call(http.MethodGet, path, nil)
		if err == nil {
			return resp, nil
		}
		if _, refused := errors.AsType[*refusedCall](err); refused || try == watchTries {
			return nil, err
		}
	}
}

// printLogs prints one stream, and returns the number of its last line.
func (c *console) printLogs(stream io.Reader) (last uint64, err error) {
	err = eachEvent(stream, func(name string, data []byte) error {
		if name != "line" {
			return nil
		}
		var l hub.OutputLine
		if err := json.Unmarshal(data, &l); err != nil {
			return fmt.Errorf("the stream is not Usher's: %w", err)
		}
		last = l.Number
		if c.json {
			return c.print("%s\n", harmlessJSON(string(data)))
		}
		return c.printLine(l)
	})
	return last, err
}
