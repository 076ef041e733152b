package async

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// What a Store may return, possibly wrapped.
var (
	// ErrNotFound: there is no such task, or none any more.
	ErrNotFound = errors.New("there is no such task")

	// ErrKeyReused: another request was accepted under the same idempotency key.
	ErrKeyReused = errors.New("the idempotency key was used for another request")

	// ErrFull: the queue has as many unfinished tasks as it may have.
	ErrFull = errors.New("the queue has as many unfinished tasks as it may have (max_tasks)")

	// ErrStale: the attempt is not the latest one of the task, or it was settled
	// already. Its outcome was not recorded.
	ErrStale = errors.New("the attempt is over: another outcome of the task was recorded, or another attempt has begun")

	// ErrUnfinished: the task is pending or running, so it can neither be retried
	// nor purged.
	ErrUnfinished = errors.New("the task has not ended")

	// ErrFinished: the task has ended, so it cannot be cancelled.
	ErrFinished = errors.New("the task has ended")

	// ErrNoResult: no answer to the task is kept.
	ErrNoResult = errors.New("no answer to the task is kept")

	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store of tasks was closed")
)

// NewerError says that a newer Usher has written the store. It stays as it is.
type NewerError struct {
	Store       string // its name for people
	Found, Know int    // versions
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%s was written by a newer Usher (version %d, this one knows %d): run that one", e.Store, e.Found, e.Know)
}

// BodyError says that a body given to Put or Settle could not be read to its end.
// Nothing was recorded.
type BodyError struct{ Err error }

func (e *BodyError) Error() string { return "the body could not be read to its end: " + e.Err.Error() }
func (e *BodyError) Unwrap() error { return e.Err }

// Store keeps tasks. A method that changes something returns without an error
// only when the change is on stable storage. With an error other than those named
// at the method the change may have been made or not.
//
// All methods may be called at the same time, and several processes may use one
// store if it is made for that. Each process is an owner, by a name that no other
// process has, or ever had. An owner holds a lease on the tasks that it has claimed.
//
// The cost of a method is O(log n) for each task that it names, returns or changes,
// if n tasks are stored. Tasks that cannot run now, because of their group,
// their exclusive name or a back-off, cost Claim nothing.
type Store interface {
	// Put accepts a task, with a body that it reads to its end. It returns a
	// *BodyError if that fails, and stores nothing then.
	//
	// If t.Key is not empty and a task of the queue has it, Put accepts nothing. It
	// returns the task and true if the fingerprints and the bodies are equal, or
	// else ErrKeyReused. It returns ErrFull if the queue has t.MaxTasks unfinished
	// tasks. Of calls with the same key at the same time one accepts.
	Put(ctx context.Context, t NewTask, body io.Reader) (task Task, existed bool, err error)

	// Get returns a task.
	Get(ctx context.Context, id string) (Task, error)

	// Body returns the body of a task, which the caller closes.
	Body(ctx context.Context, id string) (io.ReadCloser, error)

	// Result returns the answer that is kept for a task that has ended, or
	// ErrNoResult. The caller closes its body.
	Result(ctx context.Context, id string) (*Answer, error)

	// List returns tasks, in the order of their queues, their states and their age.
	List(ctx context.Context, f Filter) (Page, error)

	// Queues returns the queues that have tasks, by name.
	Queues(ctx context.Context) (map[string]Queue, error)

	// Claim begins attempts of up to n tasks of a queue that may run now, the
	// oldest first, and gives the owner a lease on them. The number of each
	// attempt is higher than those of all earlier attempts of the task. What has
	// expired is not claimed.
	Claim(ctx context.Context, owner, queue string, n int) ([]Task, error)

	// Settle ends an attempt of a task. It reads the body of the answer to its end,
	// and returns a *BodyError, and leaves the attempt as it was, if that fails. It
	// returns ErrStale if the attempt is not under way.
	//
	// If the task is to be cancelled, an outcome of Pending is recorded as Cancelled.
	// The returned task has what was recorded.
	Settle(ctx context.Context, id string, attempt int, o Outcome) (Task, error)

	// Progress notes how far an attempt is, for Get. It may be forgotten when a
	// process ends. ErrStale is that of Settle.
	Progress(ctx context.Context, id string, attempt int, percent int) error

	// Renew renews the leases on all tasks that the owner has claimed, with one
	// write at most. The caller calls it once each LeaseRenewal.
	Renew(ctx context.Context, owner string) (Renewal, error)

	// Recover ends the attempts whose owners are gone: no lease was renewed for
	// LeaseTimeout, or the store knows in another way. decide returns the outcome
	// of each; it is called with the task as it was during the attempt, and must
	// not use the store. The caller's own attempts are never ended. It returns how
	// many were ended, which may be fewer than there are: the caller calls again
	// until there are none.
	Recover(ctx context.Context, owner string, decide func(Task) Outcome) (int, error)

	// Sweep ends tasks that have expired, and removes those that were kept for as
	// long as they should be. It returns how many there were. It may do a part of
	// the work only: the caller calls again until there are none.
	Sweep(ctx context.Context) (int, error)

	// Cancel ends a task that is pending. If it is running, Cancel notes that it is
	// to be cancelled: the owner learns it from Renew, and ends the attempt. It
	// returns ErrFinished, and the task, if that has ended.
	Cancel(ctx context.Context, id string) (Task, error)

	// Retry makes a task pending that has ended and was not done, as if it was
	// accepted now: its attempts count anew, it stands at the end of its
	// group, and it never expires. Attempt goes on. It returns ErrUnfinished if it
	// has not ended, and ErrFinished if it was done.
	Retry(ctx context.Context, id string) (Task, error)

	// Purge removes a task that has ended, with its answer and its key. It returns
	// ErrUnfinished if it has not ended.
	Purge(ctx context.Context, id string) error

	// Watch calls f after each change of a task's state by this process, and of
	// other processes as far as the store hears of them. Changes may be left out or
	// come together, after a lost connection for example, so the caller looks again
	// from time to time. f is called without locks and must not block. stop ends
	// it; a call under way may still return after that.
	Watch(f func(Change)) (stop func())

	// Close ends the use of the store. Calls under way may fail with ErrClosed.
	Close() error

	// String names the store for people, without secrets.
	String() string
}

// Opener is a guest module usher.stores.*: it describes a store. Opening has side
// effects; making and provisioning the module has none.
type Opener interface {
	// Open opens the store. It is called once for the life of the process, when a
	// configuration with it comes into force.
	Open(e Env) (Store, error)
}

// Env is what a store gets.
type Env struct {
	// DataDir is a directory of Usher's that survives Caddy.
	DataDir string

	// Key encrypts what lies on the disk. Empty: it is not encrypted.
	Key string
}
