package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// patience is how long q may be held now, and the reason for the end if it is
// held as long as that.
func (q *request) patience() (time.Duration, error) {
	left := time.Until(q.deadline)
	if q.page == nil {
		return left, errWaitTimeout
	}
	held := time.Duration(*q.page.After)
	if q.sought {
		held = max(held, hub.SeekFor)
	}
	if q.pageLate {
		held = max(held, returnPatience)
	}
	// What it has waited before, for another try, counts.
	if held -= q.waited; held < left {
		return max(held, 0), errWaitingPage
	}
	return left, errWaitTimeout
}

// comeBack asks for the slot of a visitor whose page asks again. If it is not
// its turn yet, it waits for that as long as any other is held before it gets
// the page. Only one request of a visitor is held so: the others get the page
// at once.
func (q *request) comeBack(v *hub.Visitor) (has bool, err error) {
	start := time.Now()
	if q.service.Reserver.Stats().Open == 0 {
		q.cold = true
	}
	if end := q.traceWait(); end != nil {
		defer func() {
			if err == nil && !has {
				end(errWaitingPage) // it goes on in the queue
				return
			}
			end(err)
		}()
	}
	visitors, linger := &q.service.Visitors, q.page.linger()
	patience := time.Duration(*q.page.After)
	if visitors.Hold(v) {
		defer visitors.Unhold(v)
	} else {
		patience = 0
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-v.Turn():
	case <-timer.C:
		err = errWaitingPage
	case <-q.ctx.Done():
		err = errClientGone
	}
	q.waited += time.Since(start)
	// Its turn may have come in the last moment.
	select {
	case <-v.Turn():
		if errors.Is(err, errWaitingPage) {
			err = nil
		}
	default:
	}
	if err != nil {
		visitors.Leave(v, linger)
		return false, err
	}
	defer visitors.End(v)
	if v.Reason() != nil {
		// It was sent away, and comes as any other request.
		return q.service.Reserver.Reserve(&q.reservation, q.asks())
	}
	q.pageLate = true
	return v.Reserve(&q.reservation, q.asks())
}

// answerPage writes the waiting page, for a visitor that goes on waiting, or
// with the reason why waiting is of no use.
func (q *request) answerPage(w http.ResponseWriter, reason error) {
	if errors.Is(reason, errWaitingPage) {
		reason = nil
	}
	v := q.service.Visitors.Find(*q.key)
	d := look(q.service, translationFor(answer.Preferences(q.came.Header, "Accept-Language")), v, q, reason)
	if v != nil {
		q.service.Visitors.Leave(v, q.page.linger())
	}
	d.Title = q.service.Name
	if q.page.Title != "" {
		d.Title = q.page.Title
		if q.replacer != nil {
			d.Title = q.replacer.ReplaceAll(d.Title, "")
		}
	}
	q.page.answer(w, q, d)
}
