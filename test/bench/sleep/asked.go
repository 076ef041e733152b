package sleep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"
)

const (
	// atOnce is how many services are awake at a time.
	atOnce = 50

	// pause is between the two requests to a service. Its policy learns
	// pauses of a second and more.
	pause = 1200 * time.Millisecond

	asleepTimeout = time.Minute
	asleepPause   = 100 * time.Millisecond
)

// askAll sends two requests to each service and lets it sleep again: its policy
// knows a start, a request and a pause then.
func (c *caddy) askAll(ctx context.Context, services int) error {
	dialer := new(net.Dialer)
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", filepath.Join(c.dir, "site.sock"))
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for from := 0; from < services; from += atOnce {
		to := min(from+atOnce, services)
		for k := range 2 {
			if k > 0 {
				time.Sleep(pause)
			}
			if err := askEach(ctx, client, from, to); err != nil {
				return err
			}
		}
		for n := from; n < to; n++ {
			if _, err := c.ask(ctx, http.MethodPost, fmt.Sprintf("/usher/services/s%d/sleep", n), "", ""); err != nil {
				return err
			}
		}
		if err := c.awaitAsleep(ctx); err != nil {
			return err
		}
	}
	c.client.CloseIdleConnections()
	return nil
}

// askEach sends one request to each service, all at once.
func askEach(ctx context.Context, client *http.Client, from, to int) error {
	errs := make([]error, to-from)
	var wg sync.WaitGroup
	for k := range errs {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://s%d.test/", from+k), nil)
			if err != nil {
				errs[k] = err
				return
			}
			res, err := client.Do(req)
			if err != nil {
				errs[k] = err
				return
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusOK {
				errs[k] = errors.Join(err, fmt.Errorf("s%d answers %s: %s", from+k, res.Status, body))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// awaitAsleep waits until no instance is left of any service.
func (c *caddy) awaitAsleep(ctx context.Context) error {
	for until := time.Now().Add(asleepTimeout); ; {
		text, err := c.ask(ctx, http.MethodGet, "/usher/services", "", "")
		if err != nil {
			return err
		}
		var all []struct {
			State     string
			Instances map[string]int
		}
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		left := 0
		for _, s := range all {
			for _, n := range s.Instances {
				left += n
			}
			if s.State != "asleep" {
				left++
			}
		}
		switch {
		case left == 0:
			return nil
		case time.Now().After(until):
			return errors.New("services that were put to sleep do not sleep")
		}
		time.Sleep(asleepPause)
	}
}
