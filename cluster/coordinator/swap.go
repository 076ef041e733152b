package coordinator

import (
	"context"
	"fmt"

	"github.com/caddy-usher/usher/cluster"
)

// A Store keeps one value with a revision. All methods may be called at the
// same time.
type Store interface {
	// Get returns the value as it was at some moment of the call, and its
	// revision, which is never empty. An empty revision means that there is no
	// value. What is inside a revision is the Store's own affair.
	Get(ctx context.Context) (value []byte, revision string, err error)

	// Put writes the value if the revision is still the given one; with an
	// empty revision, if there is no value. The results:
	//
	//   - Swapped: it is written.
	//   - Conflict: the revision is another one, and nothing was written.
	//   - Failed: nothing was written and never will be by this call. The error
	//     says why.
	//   - Unknown: anything else, with an error.
	//
	// A write that may have left this machine is not repeated.
	Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error)

	// String names the value for people.
	String() string

	// Close ends the connections.
	Close() error
}

// Over returns the Coordinator of the cluster with this name whose object is
// the value of s. Closing it closes s.
func Over(name string, s Store) Coordinator { return &over{name, s} }

type over struct {
	name string
	Store
}

func (o *over) Read(ctx context.Context) (cluster.View, error) {
	v, _, err := o.read(ctx)
	return v, err
}

func (o *over) read(ctx context.Context) (cluster.View, string, error) {
	value, revision, err := o.Get(ctx)
	if err != nil {
		return cluster.View{}, "", fmt.Errorf("%v cannot be read: %w", o.Store, err)
	}
	if revision == "" {
		return cluster.View{}, "", nil
	}
	v, err := Decode(o.name, value)
	if err != nil {
		return cluster.View{}, "", fmt.Errorf("%v: %w", o.Store, err)
	}
	return v, revision, nil
}

func (o *over) Swap(ctx context.Context, expect, next cluster.View) (cluster.SwapResult, cluster.View, error) {
	value, err := Encode(o.name, next)
	if err != nil {
		return cluster.Failed, cluster.View{}, fmt.Errorf("%v: %w", o.Store, err)
	}
	for {
		found, revision, err := o.read(ctx)
		switch {
		case err != nil:
			return cluster.Failed, cluster.View{}, err
		case !found.Equal(expect):
			return cluster.Conflict, found, nil
		}
		result, err := o.Put(ctx, value, revision)
		switch result {
		case cluster.Swapped:
			return cluster.Swapped, cluster.View{}, nil
		case cluster.Conflict:
			// What lies there now has to be told, and may be what is expected:
			// the revision changes with every touch of the object.
		case cluster.Failed:
			return cluster.Failed, cluster.View{}, fmt.Errorf("%v was not written: %w", o.Store, err)
		default:
			return cluster.Unknown, cluster.View{}, fmt.Errorf("%v may have been written, or may still be: %w", o.Store, err)
		}
	}
}
