package liveview

import (
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

// newsItem is a decision, a cold start or a failed start, as the live view
// lists them over all services.
type newsItem struct {
	Number  uint64    `json:"number"` // grows from one to the next
	Time    time.Time `json:"time"`
	Service string    `json:"service"`
	Kind    string    `json:"kind"` // target, cold_start or failure
	From    int       `json:"from"` // of a target
	To      int       `json:"to"`
	MS      int64     `json:"ms"`     // of a cold start
	Reason  string    `json:"reason"` // why, or the message of a failure
}

// newsAfter returns the latest items beyond that number, oldest first, and the
// number to go on from.
func newsAfter(h *hub.Hub, number uint64) ([]newsItem, uint64) {
	entries, _ := h.Activity.After(number)
	news := []newsItem{}
	for _, e := range entries {
		number = e.Number
		item := newsItem{Number: e.Number, Time: e.Time, Service: e.Service}
		switch event := e.Event.(type) {
		case control.Decision:
			item.Kind, item.From, item.To, item.Reason = "target", event.From, event.To, event.Reason
		case control.ColdStart:
			item.Kind, item.MS = "cold_start", event.Ready.Milliseconds()
		case control.StartFailure:
			item.Kind, item.Reason = "failure", hub.Cut(event.Error())
		default:
			continue
		}
		news = append(news, item)
	}
	return news[max(0, len(news)-hub.ActivityKept):], number
}
