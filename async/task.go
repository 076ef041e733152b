package async

import (
	"io"
	"net/http"
	"time"
)

// State is what has become of a task.
type State uint8

// The states of tasks. Those from Done on are final, unless Store.Retry is called.
const (
	// Pending: no attempt is under way, and there will be one.
	Pending State = iota + 1
	// Running: an attempt is under way.
	Running
	// Done: it was answered with success.
	Done
	// Failed: it was answered with an error that is not worth another attempt.
	Failed
	// Dead: Usher has given up. It has expired, or there were too many attempts.
	Dead
	// Cancelled: it was to be cancelled, and no attempt had come to an end.
	Cancelled
)

// States are all states, in their order.
var States = []State{Pending, Running, Done, Failed, Dead, Cancelled}

var stateNames = [...]string{Pending: "pending", Running: "running", Done: "done", Failed: "failed", Dead: "dead", Cancelled: "cancelled"}

// String returns the word for s that users see.
func (s State) String() string {
	if s < Pending || s > Cancelled {
		return "unknown"
	}
	return stateNames[s]
}

// Final reports whether a task in that state has ended.
func (s State) Final() bool { return s >= Done }

// ReasonExpired is Task.Reason of a task that has expired.
const ReasonExpired = "it has expired: no attempt began in time"

// Request is what a task sends, without its body.
type Request struct {
	Method string      `json:"method"`
	URI    string      `json:"uri"` // path and query
	Host   string      `json:"host,omitempty"`
	Header http.Header `json:"header,omitempty"` // only what may be stored

	// Remote is the address of the client, as host:port, and Secure whether it came
	// with TLS.
	Remote string `json:"remote,omitempty"`
	Secure bool   `json:"secure,omitempty"`

	// StatusURL is where the client finds the status of the task, up to the id. It is
	// for callbacks; others have none.
	StatusURL string `json:"status_url,omitempty"`
}

// NewTask is a task to be accepted.
type NewTask struct {
	// Queue has tasks that are executed by the same instances. It is the name of a
	// service, or that of CallbackQueue.
	Queue string

	// Request is what is to be executed.
	Request Request

	// Client says who has handed it in, in words that mean nothing to a store.
	Client string

	// Group is a name within the queue. The tasks of a group run one at a time, in
	// order. Empty: of no group.
	Group string

	// Exclusive is a name over all queues. Of the tasks that have it one runs at a
	// time. The names come from the configuration, so they are few. Empty: none.
	Exclusive string

	// Key is the idempotency key, unique within the queue while the task is kept.
	// Empty: none.
	Key string

	// Fingerprint is equal for requests that are equal, but for their bodies. The
	// store compares those itself, by a hash.
	Fingerprint string

	// Expires is how long after it was accepted the first attempt may begin. 0: it
	// does not expire.
	Expires time.Duration

	// Keep is how long after its end the task is kept. 0: until it is purged.
	Keep time.Duration

	// Callback is the URL that is told of the end, by the task that CallbackOf
	// returns. Empty: none.
	Callback string

	// MaxTasks is how many unfinished tasks the queue may have, this one
	// included. 0 is no limit.
	MaxTasks int
}

// Task is a task as it is stored.
type Task struct {
	// ID is unguessable: at least 128 bits of it are random. It is made of letters
	// and digits.
	ID string

	Queue     string
	Request   Request
	Client    string
	Group     string
	Exclusive string
	Key       string
	Callback  string
	Keep      time.Duration

	// BodySize is the length of the body in bytes.
	BodySize int64

	State State

	// Attempt is the number of the latest attempt, 0 before the first one. It never
	// falls. It is what tells a stale attempt.
	Attempt int

	// Counted is how many attempts have ended that count for the limit of attempts.
	Counted int

	// Owner has the attempt under way.
	Owner string

	// Cancelling is true while the task is to be cancelled and an attempt is under
	// way.
	Cancelling bool

	// Progress is how far the attempt under way is, in percent. Negative: not told.
	Progress int

	// Reason says why the task is in its state, or why the latest attempt has
	// failed.
	Reason string

	// Status is the HTTP status of the answer that is kept; 0: there is none.
	Status     int
	ResultSize int64

	// The times are those of the store's clock. Due is when the next attempt, or the
	// one under way, may begin by time. It is zero for a task that has ended. Started
	// is when the latest attempt has begun. Each is zero if there is none.
	Accepted, Due, Started, Expires, Ended time.Time
}

// Answer is an HTTP response that is kept.
type Answer struct {
	Status int
	Header http.Header

	// Body has the whole body. Size is its length, or negative where it is given to
	// a store and not known.
	Body io.ReadCloser
	Size int64
}

// Outcome is how an attempt has ended.
type Outcome struct {
	// State is Pending if there is to be another attempt after Delay, or else a
	// final one.
	State State
	Delay time.Duration

	// Uncounted attempts do not count for the limit: the instance has seen nothing.
	Uncounted bool

	// Reason is Task.Reason. Empty: none.
	Reason string

	// Answer is kept if State is final. Nil: none. The store reads its body, and
	// does not close it.
	Answer *Answer
}

// Filter says which tasks List returns.
type Filter struct {
	// Queue is that of the tasks. Empty: all queues.
	Queue string

	// State is that of the tasks. 0: any.
	State State

	// After is Page.Next of the page before. Empty: from the beginning. It belongs
	// to the other fields.
	After string

	// Limit is the most tasks of the page. 0 is 100.
	Limit int
}

// PageSize is the size of a page without a limit.
const PageSize = 100

// Page is a part of a list.
type Page struct {
	Tasks []Task

	// Next is for Filter.After. Empty: there are no more.
	Next string
}

// Queue says what a queue has at one moment.
type Queue struct {
	// States counts the tasks, by State.
	States [Cancelled + 1]int

	// Runnable is how many of the pending tasks could begin now at the same time, if
	// there were slots for them.
	Runnable int

	// Oldest is for how long the oldest task that could begin has waited since it
	// was accepted. 0 if there is none.
	Oldest time.Duration

	// NextDue is how long it takes until a task can begin that could not before
	// because of its back-off. Negative: there is none.
	NextDue time.Duration
}

// Unfinished counts the tasks that have not ended.
func (q Queue) Unfinished() int { return q.States[Pending] + q.States[Running] }

// Renewal is what an owner learns from Store.Renew.
type Renewal struct {
	// Cancelled are the owner's attempts whose tasks are to be cancelled.
	Cancelled []Attempt

	// Lost are attempts that the owner had claimed and that others have ended,
	// because the lease was renewed too late.
	Lost []Attempt
}

// Attempt names an attempt.
type Attempt struct {
	ID      string
	Attempt int
}

// Change says that a task is in another state, or was accepted.
type Change struct {
	Queue string
	ID    string
	State State
}

// How leases are kept by stores that several processes use. The time is measured
// on clocks that do not jump: a lease is over when its holder has not renewed it for
// LeaseTimeout as another process has seen it.
const (
	LeaseRenewal = 5 * time.Second
	LeaseTimeout = 20 * time.Second
)
