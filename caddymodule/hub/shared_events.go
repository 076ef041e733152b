package hub

import (
	"encoding/json"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/scaler/control"
)

// What happens to a shared service happens at the Caddy that leads. The others are
// told, so that all show the same. Log, metrics and Caddy's events stay with the
// one at which it happened: each thing is counted once.

// newsEvent is the subject of news about an event.
const newsEvent = "event"

// newsSpent, before the name of a service, is the subject of news about an instance
// that has had its last request, by max_requests.
const newsSpent = "spent/"

// sharedEvent is an event of a service, on its way to other Caddys. One of the
// fields for it is set.
type sharedEvent struct {
	Service  string                `json:"service"`
	Time     time.Time             `json:"time"`
	Decision *control.Decision     `json:"decision,omitempty"`
	Cold     *coldStart            `json:"cold,omitempty"`
	Failure  *control.StartFailure `json:"failure,omitempty"`
	Outlook  *control.Outlook      `json:"outlook,omitempty"`
}

// coldStart is one with its times as they are.
type coldStart control.ColdStart

// tellEvent tells the others what has happened here. It is called under the
// loop's lock.
func (m *membership) tellEvent(e Entry) {
	if !m.leading() {
		return
	}
	told := sharedEvent{Service: e.Service, Time: e.Time}
	switch event := e.Event.(type) {
	case control.Decision:
		told.Decision = &event
	case control.ColdStart:
		told.Cold = (*coldStart)(&event)
	case control.StartFailure:
		event.Failure = event.InWords()
		told.Failure = &event
	case control.Outlook:
		told.Outlook = &event
	default:
		return
	}
	b, err := json.Marshal(told)
	if err != nil {
		m.log().Error("the other Caddys are not told of an event", zap.String("service", e.Service), zap.Error(err))
		return
	}
	m.driver.Tell(newsEvent, b)
}

// hearEvent takes note of what has happened at the Caddy that leads.
func (m *membership) hearEvent(body []byte) {
	var told sharedEvent
	if err := json.Unmarshal(body, &told); err != nil {
		m.log().Warn("an event of another Caddy is not understood", zap.Error(err))
		return
	}
	_, s := m.of(told.Service, nil)
	if s == nil || m.leading() {
		return
	}
	var event control.Event
	switch {
	case told.Outlook != nil:
		s.foresaw(told.Time, *told.Outlook)
		return
	case told.Decision != nil:
		event = *told.Decision
	case told.Cold != nil:
		event = control.ColdStart(*told.Cold)
	case told.Failure != nil && told.Failure.Failure != nil:
		event = *told.Failure
	default:
		return
	}
	s.Loop.FollowEvent(event)
	e := Entry{Time: told.Time, Service: s.Name, Event: event}
	s.remember(e)
	s.Hub.Activity.add(e)
	s.Changes.tell()
}

// Told implements driver.Host.
func (m *membership) Told(from, subject string, body []byte) (passOn bool) {
	if name, ok := strings.CutPrefix(subject, newsPlaced); ok {
		m.hearPlaced(name, body)
		return false
	}
	if name, ok := strings.CutPrefix(subject, newsSpent); ok {
		if _, s := m.of(name, nil); s != nil {
			s.Loop.Spend(string(body))
		}
		return false
	}
	if name, ok := strings.CutPrefix(subject, newsVisitor); ok {
		return m.hearVisitor(from, name, body)
	}
	if name, ok := strings.CutPrefix(subject, newsVariant); ok {
		m.hearVariant(name, body)
		return true
	}
	switch subject {
	case newsEvent:
		m.hearEvent(body)
	case newsMade:
		m.hearRecord(body)
	case newsUsed:
		m.hearUsed(body)
	case newsVariantGone:
		m.hearVariantGone(string(body))
	}
	return true
}
