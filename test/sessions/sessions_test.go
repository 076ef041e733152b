package sessions

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// patience is the time for what has to happen by itself.
var patience = harness.Slow(40 * time.Second)

// kinds are the applications, with the affinity that fits each.
var kinds = []struct {
	name, server, transport string
	before                  string // directives before, for the affinity
	affinity                string
}{
	{"socket.io, polling and then websocket", "socketio", "polling,websocket", "", "affinity cookie"},
	{"socket.io, polling alone", "socketio", "polling", "", "affinity cookie"},
	{"SockJS, websocket", "sockjs", "websocket", sockjsPath, "affinity key {vars.session}"},
	{"SockJS, xhr-streaming", "sockjs", "xhr-streaming", sockjsPath, "affinity key {vars.session}"},
	{"SockJS, xhr-polling", "sockjs", "xhr-polling", sockjsPath, "affinity key {vars.session}"},
	{"SockJS, eventsource", "sockjs", "eventsource", sockjsPath, "affinity key {vars.session}"},
	{"a cookie jar", "jar", "http", "", "affinity cookie"},
	{"MCP", "mcp", "http", "", "affinity key {http.response.header.Mcp-Session-Id}"},
}

// sockjsPath finds the session in the path: /echo/<server>/<session>/<transport>.
const sockjsPath = "@sockjs path_regexp sockjs ^/echo/[^/.]+/([^/.]+)/\nvars @sockjs session {re.sockjs.1}"

func TestG16SessionsOfOthersProgramsHold(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			dir := programs(t)
			c := harness.New(t)
			config := func(more ...string) harness.Config {
				options := append([]string{
					c.Command("dir "+dir, "node", "server.js", kind.server), kind.affinity, "session_timeout 3s",
					"instances 0 3", "concurrency 20", "scale queue {\nutilization 0.2\ndown_window 1s\n}", "drain_timeout 20s", "idle_timeout 10m",
				}, more...)
				return harness.Config{Site: kind.before + "\n" + harness.Usher("web", options...)}
			}
			c.Start(config())
			run := startClients(t, kind.server, "http://"+c.Addr, kind.transport)
			lives := time.Now()

			// A cold start, and a scale-up while the first ones talk.
			run.do("start", 3)
			run.answering(3, 3)
			run.do("start", 6)
			c.AwaitReady("web", 3, patience)
			n, _ := spread(run, 9)
			if lost := run.lost(lives); len(lost) > 0 {
				t.Fatalf("through a scale-up: %+v", lost)
			}

			// A reload, with another option. No connection is made just then: Caddy
			// gives its sockets to the new configuration by closing the old ones,
			// and the kernel resets what stands in their queues. Stock Caddy without
			// Usher loses about one new connection a reload to that when 1000 come
			// in a second, and neither Node nor a browser sends a POST twice.
			run.quietly(func() { c.MustReload(config("wait_timeout 50s")) })
			run.answering(n, 5)
			if lost := run.lost(lives); len(lost) > 0 {
				t.Fatalf("through a reload: %+v", lost)
			}

			kill(t, c, run, n, lives)
			shrink(t, c, run, n)
		})
	}
}

// spread starts clients, beside n, until there are sessions on three instances:
// which of them a key goes to is a matter of its hash.
func spread(run *clients, n int) (clients int, at map[int]string) {
	run.t.Helper()
	for at = run.answering(n, 1); len(byInstance(at)) < 3; at = run.answering(n, 5) {
		if n > 40 {
			run.t.Fatalf("%d sessions, and none on one of three instances: %v", n, at)
		}
		run.do("start", 3)
		n += 3
	}
	return n, at
}

func byInstance(at map[int]string) map[string][]int {
	by := make(map[string][]int)
	for client, i := range at {
		by[i] = append(by[i], client)
	}
	return by
}

// kill ends an instance without a word: its sessions come back and go on, and
// those of the others notice nothing.
func kill(t *testing.T, c *harness.Caddy, run *clients, n int, lives time.Time) {
	t.Helper()
	at := run.answering(n, 1)
	victim := c.Processes()[0]
	victim.Kill()
	harness.Eventually(t, patience, func() bool {
		for _, p := range c.Processes() {
			if p.PID == victim.PID {
				return false
			}
		}
		return true
	}, "it is gone")
	now := run.answering(n, 5)
	for client, i := range now {
		if i == victim.Instance {
			t.Errorf("client %d is answered by an instance that is gone", client)
		}
		if at[client] != victim.Instance && i != at[client] {
			t.Errorf("client %d went from %s to %s, and only %s was killed", client, at[client], i, victim.Instance)
		}
	}
	for _, h := range run.lost(lives) {
		if h.Instance != victim.Instance && at[h.Client] != victim.Instance {
			t.Errorf("a session on another instance was lost: %+v", h)
		}
	}
}

// shrink ends all sessions of one instance, and most of the others': that one is
// stopped, and the sessions that are left notice nothing.
func shrink(t *testing.T, c *harness.Caddy, run *clients, n int) {
	t.Helper()
	c.AwaitReady("web", 3, patience)
	_, at := spread(run, n) // on the new one, too
	by := byInstance(at)
	leaves := ""
	for i := range by {
		if leaves == "" || len(by[i]) > len(by[leaves]) {
			leaves = i
		}
	}
	run.do("end", leaves)
	run.do("keep", 2)
	from := time.Now()
	left := 0
	for i, all := range by {
		if i != leaves {
			left += min(2, len(all))
		}
	}
	if !harness.WaitFor(patience, func() bool {
		for _, i := range c.Service("web").InstanceList {
			if i.ID == leaves {
				return false
			}
		}
		return true
	}) {
		t.Fatalf("%s has no session any more, and is not stopped: %+v", leaves, c.Service("web"))
	}
	now := run.answering(left, 5)
	for client, i := range now {
		if at[client] != i {
			t.Errorf("client %d went from %s to %s", client, at[client], i)
		}
	}
	if lost := run.lost(from); len(lost) > 0 {
		t.Errorf("through a scale-down: %+v", lost)
	}
}
