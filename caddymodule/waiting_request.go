package caddymodule

import (
	"errors"
	"net/http"
	"strings"
	"time"
)

// patience is how long q may be held now, and the reason for the end if it is
// held as long as that.
func (q *request) patience() (time.Duration, error) {
	left := time.Until(q.deadline)
	if q.page == nil {
		return left, errWaitTimeout
	}
	held := time.Duration(*q.page.After)
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
func (q *request) comeBack(v *visitor) (has bool, err error) {
	start := time.Now()
	if q.service.reserver.Stats().Open == 0 {
		q.cold = true
	}
	if end := q.traceWait(); end != nil {
		defer func() {
			if err == nil && !has {
				end(errWaitingPage) // it goes on in the line
				return
			}
			end(err)
		}()
	}
	visitors, linger := &q.service.visitors, q.page.linger()
	patience := time.Duration(*q.page.After)
	if visitors.hold(v) {
		defer visitors.unhold(v)
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
		visitors.leave(v, linger)
		return false, err
	}
	defer visitors.end(v)
	if v.Reason() != nil {
		// It was sent away, and comes as anybody else.
		return q.service.reserver.Reserve(&q.reservation, q.quiet)
	}
	q.pageLate = true
	return v.Reserve(&q.reservation)
}

// answerPage writes the waiting page: for one who goes on waiting in the
// browser, or with the reason why that is of no use.
func (q *request) answerPage(w http.ResponseWriter, reason error) {
	if errors.Is(reason, errWaitingPage) {
		reason = nil
	}
	v := q.service.visitors.find(*q.key)
	d := q.service.look(wordsFor(strings.Join(q.came.Header.Values("Accept-Language"), ",")), v, q, reason)
	if v != nil {
		q.service.visitors.leave(v, q.page.linger())
	}
	d.Title = q.service.name
	if q.page.Title != "" {
		d.Title = q.page.Title
		if q.replacer != nil {
			d.Title = q.replacer.ReplaceAll(d.Title, "")
		}
	}
	q.page.answer(w, q, d)
}
