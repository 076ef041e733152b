package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// codeInstanceEnded is the code of a 502 whose reason is the end of an instance
// that was ready only for a moment.
const codeInstanceEnded = "instance_ended"

// Servers that fork their workers listen before these can serve. If the workers
// cannot start, the server is ready, takes requests and ends. The connections
// of the requests break a moment before the end is known.
const (
	// endAwaited is how long a request waits for the reason.
	endAwaited = 500 * time.Millisecond
	// youngUntil is how long an instance must be ready to be past that.
	youngUntil = control.ProvenAfter
)

// instanceEnd returns why the instance has ended on which q was, if it ended
// soon after it was ready, and got no answer for q.
func (q *request) instanceEnd() *scaler.Failure {
	a := q.attempt.Load()
	if a.outcome != lost || q.writer.wrote || q.ctx.Err() != nil || a.instance.Age() > youngUntil+endAwaited {
		return nil
	}
	if a.broke {
		timer := time.NewTimer(endAwaited)
		defer timer.Stop()
		select {
		case <-a.instance.Gone():
		case <-timer.C:
		case <-q.ctx.Done():
			return nil
		}
	}
	f, _ := errors.AsType[*scaler.Failure](a.instance.Reason())
	return f
}

// answerEnded answers 502 with the reason for which the instance has ended.
// The instance may have seen the request, so the answer does not invite to send
// it again.
func (q *request) answerEnded(f *scaler.Failure) error {
	q.why = &explanation{
		status: http.StatusBadGateway, code: codeInstanceEnded,
		detail: scaler.Readable(f.Short), fullDetail: f.Error(),
	}
	if c := q.service.Log().Check(zap.DebugLevel, "the instance ended with the request inside"); c != nil {
		c.Write(zap.String("instance", q.instance.ID), zap.Error(f))
	}
	w := answer.Seal(q.writer.ResponseWriter)
	own := http.Header{"Cache-Control": {"no-store"}}
	err := caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("service %s: %s: instance %s: %s", q.service.Name, q.why.code, q.instance.ID, q.why.detail))
	q.restore()
	if q.offer(w, err, own) {
		return nil
	}
	maps.Copy(w.Header(), own)
	q.body.giveUp(w)
	defer q.body.linger(w)
	q.answer(w)
	return nil
}
