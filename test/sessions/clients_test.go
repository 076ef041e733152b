package sessions

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// happening is a line that the clients print.
type happening struct {
	Client   int    `json:"client"`
	Event    string `json:"event"`
	Instance string `json:"instance"`
	Count    int    `json:"count"`
	Error    string `json:"error"`
	at       time.Time
}

// clients are those of one kind, with one session each.
type clients struct {
	t     *testing.T
	say   io.Writer
	mu    sync.Mutex
	lines []happening
}

// programs is where the servers and clients are.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	_, noNode := exec.LookPath("node")
	_, missing := os.Stat(filepath.Join(dir, "node_modules"))
	if noNode == nil && missing == nil {
		return dir
	}
	if os.Getenv("USHER_TEST_SESSIONS") != "" {
		t.Fatal("the servers and clients are not installed: run 'npm ci' in test/sessions/testdata")
	}
	t.Skip("the servers and clients are not installed: run 'npm ci' in test/sessions/testdata")
	return ""
}

// startClients starts the program of the clients, which ends with the test.
func startClients(t *testing.T, kind, url, transport string) *clients {
	t.Helper()
	if kind == "jar" {
		return startJars(t, url)
	}
	cmd := exec.CommandContext(t.Context(), "node", "client.js", kind, url, transport)
	cmd.Dir, cmd.Stderr = programs(t), os.Stderr
	say, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &clients{t: t, say: say}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			h := happening{at: time.Now()}
			if err := json.Unmarshal(lines.Bytes(), &h); err == nil {
				c.mu.Lock()
				c.lines = append(c.lines, h)
				c.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		_ = say.Close() // it ends then
		<-read
		_ = cmd.Wait()
	})
	return c
}

func (c *clients) do(command string, what any) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.say, command, what); err != nil {
		c.t.Fatal(err)
	}
}

// quietly does something while no client sends, and their connections stay open.
func (c *clients) quietly(what func()) {
	c.t.Helper()
	from := time.Now()
	c.do("pause", "")
	if !harness.WaitFor(patience, func() bool {
		return slices.ContainsFunc(c.since(from), func(h happening) bool { return h.Event == "paused" })
	}) {
		c.t.Fatal("the clients do not pause")
	}
	what()
	c.do("resume", "")
}

// since returns what has happened from a moment on.
func (c *clients) since(t time.Time) (all []happening) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.lines {
		if h.at.After(t) {
			all = append(all, h)
		}
	}
	return all
}

// answering waits until each of n clients has had so many more answers, and
// returns the instance of each.
func (c *clients) answering(n, answers int) map[int]string {
	c.t.Helper()
	from := time.Now()
	at, count := make(map[int]string), make(map[int]int)
	if !harness.WaitFor(patience, func() bool {
		clear(count)
		for _, h := range c.since(from) {
			if h.Event == "answer" {
				at[h.Client] = h.Instance
				count[h.Client]++
			}
		}
		enough := 0
		for _, k := range count {
			if k >= answers {
				enough++
			}
		}
		return enough >= n
	}) {
		c.t.Fatalf("%d clients do not have %d more answers each: %v; lost: %+v", n, answers, count, c.lost(from))
	}
	return at
}

// lost returns the sessions that were lost from a moment on, and the answers that
// say that an instance has forgotten one.
func (c *clients) lost(from time.Time) (all []happening) {
	counted := make(map[int]int)
	for _, h := range c.since(time.Time{}) {
		switch h.Event {
		case "open":
			counted[h.Client] = 0
		case "answer":
			if counted[h.Client]++; h.Count != counted[h.Client] && h.at.After(from) {
				all = append(all, h)
			}
			counted[h.Client] = h.Count
		case "closed":
			if h.at.After(from) {
				all = append(all, h)
			}
		}
	}
	return all
}
