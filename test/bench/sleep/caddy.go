package sleep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// caddy is a running Caddy, in a directory of its own, that listens on unix
// sockets only.
type caddy struct {
	dir    string
	config string
	cmd    *exec.Cmd
	ended  chan struct{}
	since  time.Time // when the configuration came into force
	client *http.Client
	took   time.Duration
}

const (
	// program is what the services would run.
	program = "app"

	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// start runs Caddy and returns when it serves.
func start(ctx context.Context, cfg Config, config string) (_ *caddy, err error) {
	dir, err := os.MkdirTemp("", "usher-sleep-")
	if err != nil {
		return nil, err
	}
	c := &caddy{dir: dir, config: config}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	dialer := new(net.Dialer)
	c.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
		},
	}}
	if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	if cfg.App != "" {
		err = os.Symlink(cfg.App, filepath.Join(dir, program))
	} else {
		err = os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o700)
	}
	if err != nil {
		return nil, err
	}
	return c, c.run(ctx, cfg)
}

// run starts the process and waits until it serves.
func (c *caddy) run(ctx context.Context, cfg Config) error {
	dir := c.dir
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, cfg.Caddy, "run", "--config", "Caddyfile")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	if cfg.Attribute {
		cmd.Env = append(cmd.Env, "GODEBUG=memprofilerate=1")
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	c.cmd, c.ended = cmd, ended
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	return c.await(ctx, begin)
}

// restart ends the process and starts it anew, in the same directory.
func (c *caddy) restart(ctx context.Context, cfg Config) error {
	if err := c.end(); err != nil {
		return err
	}
	return c.run(ctx, cfg)
}

// await waits until Caddy serves.
func (c *caddy) await(ctx context.Context, begin time.Time) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		out, err := os.ReadFile(filepath.Join(c.dir, "log"))
		if err != nil {
			return err
		}
		if bytes.Contains(out, []byte("serving initial configuration")) {
			c.since = time.Now()
			c.took = c.since.Sub(begin)
			return nil
		}
		if time.Since(begin) > startTimeout {
			return fmt.Errorf("caddy does not serve within %s:\n%s", startTimeout, out)
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return fmt.Errorf("caddy has ended:\n%s", out)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends Caddy and removes its directory.
func (c *caddy) stop() error {
	defer os.RemoveAll(c.dir)
	if c.cmd == nil {
		return nil
	}
	return c.end()
}

// end ends the process.
func (c *caddy) end() error {
	c.client.CloseIdleConnections()
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
		return nil
	case <-time.After(stopTimeout):
		_ = c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("caddy did not end within %s of SIGTERM", stopTimeout)
	}
}

// ask sends a request to the admin API.
func (c *caddy) ask(ctx context.Context, method, path, kind, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", kind)
	// Else Caddy does not load a configuration that equals the one it has.
	req.Header.Set("Cache-Control", "must-revalidate")
	res, err := c.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	return string(answer), nil
}

// reload loads the configuration anew and returns how long that took.
func (c *caddy) reload(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	_, err := c.ask(ctx, http.MethodPost, "/load", "text/caddyfile", c.config)
	c.since = time.Now()
	// What is left of the admin server before must not be asked.
	c.client.CloseIdleConnections()
	return c.since.Sub(begin), err
}

const (
	// settled is by how much two looks in a row may differ: nothing goes away
	// in the background any more.
	settled = 16 << 10
	// awake is how long a configuration is not at rest: every ten seconds
	// Caddy notes the health of the upstreams of plain routes, the first time
	// after ten, and holds more from then on.
	awake      = 12 * time.Second
	fewLooks   = 4 // until what is kept to be used again has gone
	looks      = 50
	lookPause  = 100 * time.Millisecond
	heapPath   = "/debug/pprof/heap?gc=1&debug=1"
	stacksPath = "/debug/pprof/goroutine?debug=1"
)

// state waits until Caddy has come to rest, and looks at it until it has, some
// times at least.
func (c *caddy) state(ctx context.Context, atLeast int) (State, error) {
	var s State
	select {
	case <-time.After(time.Until(c.since.Add(awake))):
	case <-ctx.Done():
		return s, ctx.Err()
	}
	for look := range looks {
		before := s
		text, err := c.ask(ctx, http.MethodGet, heapPath, "", "")
		if err != nil {
			return s, err
		}
		if s.Heap, err = numberAfter(text, "# HeapAlloc = "); err != nil {
			return s, err
		}
		if text, err = c.ask(ctx, http.MethodGet, stacksPath, "", ""); err != nil {
			return s, err
		}
		goroutines, err := numberAfter(text, "goroutine profile: total ")
		if err != nil {
			return s, err
		}
		s.Goroutines = int(goroutines)
		if look >= atLeast && s.Goroutines == before.Goroutines && max(s.Heap, before.Heap)-min(s.Heap, before.Heap) < settled {
			return s, nil
		}
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
	return s, errors.New("caddy does not come to rest")
}

// numberAfter reads the number that follows the mark.
func numberAfter(text, mark string) (int64, error) {
	_, rest, ok := strings.Cut(text, mark)
	if !ok {
		return 0, fmt.Errorf("the profile has no %q", mark)
	}
	digits, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
}

// profile returns the live memory with where it was allocated.
func (c *caddy) profile(ctx context.Context) (profile, error) {
	text, err := c.ask(ctx, http.MethodGet, heapPath, "", "")
	if err != nil {
		return nil, err
	}
	return parseProfile(text)
}
