// Package e2ebrowser tests what people see, with the real Caddy, real
// processes and a real browser.
package e2ebrowser

import (
	"flag"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// pictures is where -pictures puts what README.md and docs/ show.
var pictures = flag.Bool("pictures", false, "take the pictures in docs/images anew")

const pictureDir = "../../docs/images"

func TestMain(m *testing.M) { harness.Main(m) }

// soon is the time for what has to happen by itself in a moment, on a machine
// that has much else to do. It runs out only if something is wrong.
var soon = harness.Slow(20 * time.Second)

// start starts a Caddy and a browser. The tests run one after the other: a
// browser needs the machine.
func start(t *testing.T) (*harness.Caddy, *browser.Browser) {
	t.Helper()
	b := browser.New(t)
	return harness.New(t), b
}

func origin(c *harness.Caddy) string { return "http://" + c.Addr }

// shows waits until the page says something.
func shows(p *browser.Page, words string) {
	p.Await(soon, `document.body.innerText.includes(`+quoted(words)+`)`)
}

func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }

// clean checks that the page has contacted no other origin, and that the
// browser has nothing to complain of but the status of the waiting page.
func clean(t *testing.T, c *harness.Caddy, p *browser.Page) {
	t.Helper()
	p.WantOnlyOrigin(origin(c))
	p.WantNoComplaints(503)
}

// readyAt is when the latest instance was ready, by Usher's log.
func readyAt(t *testing.T, c *harness.Caddy) time.Time {
	t.Helper()
	var at time.Time
	for _, e := range c.Log() {
		if ts, ok := e.Fields["ts"].(float64); ok && e.Msg == "instance ready" {
			at = time.UnixMicro(int64(ts * 1e6))
		}
	}
	if at.IsZero() {
		t.Fatal("no instance was ready")
	}
	return at
}

func picture(p *browser.Page, name string) {
	p.Screenshot(filepath.Join(pictureDir, name+".png"))
}
