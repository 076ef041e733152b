package async

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Policy says how the tasks of a queue are executed. It may change between
// attempts.
type Policy struct {
	// Attempts is how many attempts that count a task may have. With 1 it is
	// executed at most once.
	Attempts int

	// BackoffFrom is the pause after the first attempt. It doubles with each one, up
	// to BackoffTo. A part of it is random.
	BackoffFrom, BackoffTo time.Duration

	// Timeout is how long one attempt may take, with reading its answer.
	Timeout time.Duration

	// RetryOn are the statuses of answers after which there is another attempt.
	RetryOn []int

	// MaxResult is the size in bytes of the largest answer that is kept.
	MaxResult int64

	// Waiting is the most tasks that stand in the queue of the service at a time.
	// They are what the service sees as demand.
	Waiting int
}

// DefaultPolicy is what the options of a service begin with.
var DefaultPolicy = Policy{
	Attempts:    5,
	BackoffFrom: time.Second,
	BackoffTo:   10 * time.Minute,
	Timeout:     time.Hour,
	RetryOn:     []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout},
	MaxResult:   100 << 20,
	Waiting:     256,
}

// retryAfterMost is the longest pause that an answer can ask for.
const retryAfterMost = time.Hour

// backoff returns the pause after an attempt, if so many have counted with it.
func (p *Policy) backoff(counted int) time.Duration {
	d := p.BackoffFrom
	for range counted - 1 {
		if d >= p.BackoffTo/2 {
			d = p.BackoffTo
			break
		}
		d *= 2
	}
	d = min(d, p.BackoffTo)
	return d/2 + rand.N(d/2+1)
}

// Why an attempt has ended without an answer.
var (
	errTimeout   = errors.New("the instance did not answer within the timeout of an attempt")
	errCancelled = errors.New("the task was cancelled")
	errStopped   = errors.New("the attempt ended because Caddy was shut down")
	errLost      = errors.New("the lease on the task could not be renewed")
	errOwnerGone = errors.New("the Caddy that ran the attempt has ended")
	errTooLarge  = errors.New("the answer is larger than max_result")
)

// NotSentError says that an instance has seen nothing of a request. The attempt does
// not count.
type NotSentError struct{ Err error }

func (e *NotSentError) Error() string { return e.Err.Error() }
func (e *NotSentError) Unwrap() error { return e.Err }

// retryOr returns the outcome of an attempt of t that has failed: another attempt,
// or the end if there were too many.
func (p *Policy) retryOr(t Task, reason string, pause time.Duration, end *Answer) Outcome {
	counted := t.Counted + 1
	if counted >= p.Attempts {
		return Outcome{State: Dead, Reason: reason, Answer: end}
	}
	return Outcome{State: Pending, Delay: max(pause, p.backoff(counted)), Reason: reason}
}

// failed returns the outcome of an attempt that had no answer.
func (p *Policy) failed(t Task, err error) Outcome {
	if errors.Is(err, errCancelled) {
		return Outcome{State: Cancelled, Reason: "it was cancelled while an attempt was under way"}
	}
	if errors.Is(err, errTooLarge) {
		return Outcome{State: Dead, Reason: err.Error()}
	}
	if _, ok := errors.AsType[*NotSentError](err); ok {
		return Outcome{State: Pending, Uncounted: true, Delay: p.backoff(max(1, t.Attempt-t.Counted)), Reason: err.Error()}
	}
	return p.retryOr(t, err.Error(), 0, nil)
}

// answered returns the outcome of an attempt that had an answer.
func (p *Policy) answered(t Task, a *Answer) Outcome {
	switch {
	case slices.Contains(p.RetryOn, a.Status):
		pause := retryAfter(a.Header)
		return p.retryOr(t, "it was answered with status "+strconv.Itoa(a.Status), min(pause, retryAfterMost), a)
	case a.Status >= http.StatusBadRequest:
		return Outcome{State: Failed, Reason: "it was answered with status " + strconv.Itoa(a.Status), Answer: a}
	}
	return Outcome{State: Done, Answer: a}
}

// retryAfter returns the seconds of a Retry-After. A date is none: it needs a clock.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, 1<<30)) * time.Second
}
