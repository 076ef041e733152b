package sessions

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// jarClients are clients with a browser's cookie jar. They take the commands of
// client.js.
type jarClients struct {
	*clients
	url string
	ctx context.Context

	mu     sync.Mutex
	all    []*jarClient
	paused bool
	asking int
}

type jarClient struct {
	id    int
	at    string
	ended bool
}

func startJars(t *testing.T, url string) *clients {
	t.Helper()
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	j := &jarClients{clients: &clients{t: t, say: write}, url: url, ctx: ctx}
	var running sync.WaitGroup
	running.Go(func() {
		for lines := bufio.NewScanner(read); lines.Scan(); {
			command, what, _ := strings.Cut(lines.Text(), " ")
			j.command(&running, command, what)
		}
	})
	t.Cleanup(func() {
		_ = write.Close()
		cancel()
		running.Wait()
	})
	return j.clients
}

func (j *jarClients) command(running *sync.WaitGroup, command, what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, _ := strconv.Atoi(what)
	switch command {
	case "start":
		for range n {
			c := &jarClient{id: len(j.all)}
			j.all = append(j.all, c)
			running.Go(func() { j.run(c) })
		}
	case "end":
		for _, c := range j.all {
			c.ended = c.ended || c.at == what
		}
	case "pause":
		j.paused = true
		running.Go(j.awaitQuiet)
	case "resume":
		j.paused = false
	case "keep":
		kept := make(map[string]int)
		for _, c := range j.all {
			if !c.ended {
				kept[c.at]++
				c.ended = kept[c.at] > n
			}
		}
	}
}

// awaitQuiet says when no request is on its way any more.
func (j *jarClients) awaitQuiet() {
	harness.WaitFor(patience, func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.asking == 0
	})
	j.clients.mu.Lock()
	defer j.clients.mu.Unlock()
	j.lines = append(j.lines, happening{Client: -1, Event: "paused", at: time.Now()})
}

func (j *jarClients) run(c *jarClient) {
	jar, _ := cookiejar.New(nil) // it never fails
	client := &http.Client{Jar: jar, Timeout: patience, Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	session := ""
	for {
		j.mu.Lock()
		ended, paused := c.ended, j.paused
		if !ended && !paused {
			j.asking++
		}
		j.mu.Unlock()
		if ended || j.ctx.Err() != nil {
			return
		}
		if paused {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		h, app, err := j.ask(client, session)
		j.mu.Lock()
		j.asking--
		j.mu.Unlock()
		h.Client, h.at = c.id, time.Now()
		j.clients.mu.Lock()
		switch {
		case err != nil && j.ctx.Err() == nil:
			j.lines = append(j.lines, happening{Client: c.id, Event: "closed", Instance: c.at, Error: err.Error(), at: h.at})
		case err == nil && app != "":
			// The application did not know its session, and began another one.
			if session != "" {
				j.lines = append(j.lines, happening{Client: c.id, Event: "closed", Instance: c.at, Error: "forgotten", at: h.at})
			}
			session = app
			j.lines = append(j.lines, happening{Client: c.id, Event: "open", at: h.at})
			fallthrough
		case err == nil:
			j.lines = append(j.lines, h)
		}
		j.clients.mu.Unlock()
		if err == nil {
			j.mu.Lock()
			c.at = h.Instance
			j.mu.Unlock()
		}
		select {
		case <-time.After(40 * time.Millisecond):
		case <-j.ctx.Done():
		}
	}
}

// ask sends a request. app is the session that the application has begun with
// its answer, if it has.
func (j *jarClients) ask(client *http.Client, session string) (h happening, app string, err error) {
	r, err := http.NewRequestWithContext(j.ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return h, "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return h, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return h, "", fmt.Errorf("status %d, session %s", resp.StatusCode, session)
	}
	for _, c := range resp.Cookies() {
		if c.Name == "app" {
			app = c.Value
		}
	}
	h.Event = "answer"
	return h, app, json.NewDecoder(resp.Body).Decode(&h)
}
