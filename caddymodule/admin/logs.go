package admin

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// serviceLogs answers with the latest lines that the instances of a service
// wrote: as an array, or, with `?follow` or `Accept: text/event-stream`, as
// Server-Sent Events `line`, those to come included, at last `bye`.
// `?lines=<n>` is how many at first, `?after=<number>` leaves out those up to
// that one, `?instance=<id>` leaves out other instances.
func serviceLogs(w http.ResponseWriter, r *http.Request, _ *hub.Hub, s *hub.Service, _ string) error {
	q := r.URL.Query()
	most, after := hub.OutputLines, uint64(0)
	if text := q.Get("lines"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return answer.ApiError(http.StatusBadRequest, "lines is '%s', but has to be a number of lines", text)
		}
		most = min(n, hub.OutputLines)
	}
	if text := q.Get("after"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return answer.ApiError(http.StatusBadRequest, "after is '%s', but has to be the number of a line", text)
		}
		after = n
	}
	if err := s.NoOutput(); err != nil {
		return answer.OperationError(err)
	}
	pick := linePicker{s, q.Get("instance")}
	if q.Has("follow") || strings.Contains(r.Header.Get("Accept"), answer.TypeEvents) {
		return pick.follow(w, r, after, most)
	}
	lines, _ := pick.after(after, most)
	return answer.WriteJSON(w, lines)
}

// linePicker reads the lines of a service, or of one of its instances.
type linePicker struct {
	service  *hub.Service
	instance string // "": all
}

func (p linePicker) after(number uint64, most int) (picked []hub.OutputLine, more <-chan struct{}) {
	if p.instance == "" {
		return p.service.Outputs().After(number, most)
	}
	lines, more := p.service.Outputs().After(number, hub.OutputLines)
	picked = []hub.OutputLine{}
	for _, l := range lines {
		if l.Instance == p.instance {
			picked = append(picked, l)
		}
	}
	return picked[max(0, len(picked)-most):], more
}

// follow answers with the lines as they come, until the service is gone, the
// server ends or the client goes away.
func (p linePicker) follow(w http.ResponseWriter, r *http.Request, after uint64, most int) error {
	if r.Method == http.MethodHead {
		return nil
	}
	return follow(w, r, nil, func() (events []answer.Event, more <-chan struct{}) {
		lines, more := p.after(after, most)
		most = hub.OutputLines
		for _, l := range lines {
			after = l.Number
			events = append(events, encode("line", l)...)
		}
		return events, more
	})
}
