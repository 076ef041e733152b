package driver

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

// News are for all Caddys that are there now, and are kept nowhere. They go over
// the same streams as messages. A member tells the leader, which passes them on
// once if its Host says so: they never go in circles.

// item is a piece of news.
type item struct {
	From    string `json:"from"` // the boot of the Caddy that has told it
	Subject string `json:"subject"`
	Body    []byte `json:"body,omitempty"`
}

// maxNews is the most bytes that the body of news may have.
const maxNews = link.MaxFrame / 2

// Tell tells all other Caddys of a subject. A Caddy that is not connected
// never hears of it, so it is for what does no lasting harm when it is lost. News
// of one Caddy arrive in their order. The body has at most half a MiB.
func (d *Driver) Tell(subject string, body []byte) {
	if len(body) > maxNews {
		d.c.Logger.Error("news are too long, and the other Caddys are not told", slog.String("subject", subject), slog.Int("bytes", len(body)))
		return
	}
	b, err := json.Marshal(item{d.c.Self.Boot, subject, body})
	if err != nil {
		d.c.Logger.Error("the other Caddys are not told", slog.String("subject", subject), slog.Any("error", err))
		return
	}
	d.mu.Lock()
	to := d.allStreams("")
	d.mu.Unlock()
	sendAll(append([]byte{news}, b...), to)
}

// takeNews takes news that have come from another Caddy, and passes them on if
// this one leads.
func (d *Driver) takeNews(from string, frame []byte) error {
	var n item
	if err := json.Unmarshal(frame[1:], &n); err != nil {
		return fmt.Errorf("news that are not understood: %w", err)
	}
	d.postLater(func() cluster.Event {
		if d.c.Host.Told(n.From, n.Subject, n.Body) && frame[0] == news && d.node.Leads() {
			d.mu.Lock()
			to := d.allStreams(from)
			d.mu.Unlock()
			sendAll(append([]byte{newsOn}, frame[1:]...), to)
		}
		return nil
	})
	return nil
}

func sendAll(frame []byte, to []*stream) {
	for _, s := range to {
		_ = s.conn.Send(frame) // its receiver learns of it
	}
}
