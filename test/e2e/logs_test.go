package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/harness"
)

func TestLogsShowsWhatInstancesWroteAlsoOfThoseThatHaveEnded(t *testing.T) {
	c := newCaddy(t)
	c.Start(web(c, args("-print", "hello \x1b[31m from it"), "idle_timeout 1s", "scale queue"))
	wantOK(t, c.Get("/"))
	id := c.Service("web").InstanceList[0].ID
	c.AwaitState("web", "asleep", soon)
	out, status := c.Run("usher", "logs", "--address", c.AdminAddr, "web")
	if status != 0 || !strings.Contains(out, id+`  hello \x1b[31m from it`) {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status := c.Run("usher", "logs", "--address", c.AdminAddr, "nothing"); status != 4 {
		t.Errorf("of no service: status %d: %s", status, out)
	}
}

// The stream of lines ends with the admin server that a reload replaces, and
// goes on behind the last line at the next one.
func TestAFollowerOfLogsMissesNothingOverAReload(t *testing.T) {
	c := newCaddy(t)
	cfg := func(change string) harness.Config {
		return harness.Config{Site: harness.Usher("web", c.Backend("-print", "started"), "idle_timeout 1s", "scale queue") + "\nheader X-Load " + change}
	}
	c.Start(cfg("1"))
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	after := ""
	follow := func(until func(name, data string) bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.AdminAddr+"/usher/services/web/logs?follow&after="+after, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		name := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if event, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				name = event
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && until(name, data) {
				return
			}
		}
		t.Fatal("the stream has ended without bye")
	}
	first := make(chan harness.Response, 1)
	go func() { first <- c.Get("/") }()
	reloaded := make(chan error, 1)
	var ids []string
	note := func(name, data string) bool {
		var l struct {
			Number         json.Number
			Instance, Text string
		}
		if name != "line" || json.Unmarshal([]byte(data), &l) != nil || l.Text != "started" {
			return false
		}
		after = l.Number.String()
		ids = append(ids, l.Instance)
		return true
	}
	follow(func(name, data string) bool {
		if note(name, data) {
			go func() { reloaded <- c.Reload(cfg("2")) }()
		}
		return name == "bye"
	})
	wantOK(t, <-first)
	if err := <-reloaded; err != nil {
		t.Fatal(err)
	}
	c.AwaitState("web", "asleep", soon)
	wantOK(t, c.Get("/"))
	harness.Eventually(t, soon, func() bool { return c.Journal().Starts() == 2 }, "the second start")
	follow(note)
	if len(ids) != 2 || ids[0] == ids[1] {
		t.Errorf("lines of instances %q, want one of each of two", ids)
	}
}
