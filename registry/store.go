package registry

import (
	"context"
	"errors"
)

// ErrNotStored says that the store has no record of that name. A Store may wrap it.
var ErrNotStored = errors.New("there is no record of that name")

// Position is how far a reader has followed the changes of a store. The zero value is
// before all of them. Only the store knows what it means.
type Position string

// Changes is what has changed in a store since a position.
type Changes struct {
	// The records that may have changed, each once, without those that this Store
	// has written itself.
	Names []string

	// The store does not know any more: any record may have changed.
	All bool

	// The position for the next call.
	Next Position
}

// Store keeps records, each under its name, which CheckName permits. It does not know
// what they mean.
//
// All methods may be called at the same time, and several processes may use one store.
// A process that ends at any time, or loses power, leaves each record as it was before a
// write or after it, and no lock for longer than a minute.
type Store interface {
	// Lock waits until the caller alone may write, over all processes that use the
	// store, and returns how that ends. It returns an error if ctx ends before.
	Lock(ctx context.Context) (unlock func(), err error)

	// List returns the names of all records, in any order.
	List(ctx context.Context) ([]string, error)

	// Load returns a record, or ErrNotStored.
	Load(ctx context.Context, name string) ([]byte, error)

	// Put writes a record. When it returns nil, the record is on stable storage, and
	// Changes tells others of it. After an error it may have been written or not. The
	// caller holds the lock.
	Put(ctx context.Context, name string, record []byte) error

	// Remove is like Put, and removes a record. One that is not there is no error.
	Remove(ctx context.Context, name string) error

	// Changes returns what others have changed since a position. If nothing was
	// changed, it costs one read of the storage. A record may be named that is still as
	// it was. A caller that holds the lock learns all that was ever written.
	Changes(ctx context.Context, since Position) (Changes, error)
}
