package coordinator

import (
	"context"

	"github.com/caddy-usher/usher/cluster"
)

// Namespace is where the modules of coordinators are: usher.coordinators.etcd,
// for example.
const Namespace = "usher.coordinators"

// A Coordinator keeps the view of one cluster. All methods may be called at the
// same time.
type Coordinator interface {
	// Read returns the view. The zero View means that there is none. It is
	// linearizable: the view is as it was at some moment of the call.
	Read(ctx context.Context) (cluster.View, error)

	// Swap replaces the view expect by next. With the zero View as expect, next
	// is the first view. The results:
	//
	//   - Swapped: next lies there.
	//   - Conflict: another view than expect lies there, and it is returned.
	//   - Failed: the view was not changed by this call and never will be. The
	//     error says why.
	//   - Unknown: the view may have been changed, or may still be. The error
	//     says why.
	//
	// With Swapped and Conflict the error is nil.
	Swap(ctx context.Context, expect, next cluster.View) (cluster.SwapResult, cluster.View, error)

	// String names the object for people, such as "etcd key /usher/main/view".
	// It holds no secrets.
	String() string

	// Close ends the connections. Calls that run, and later ones, fail.
	Close() error
}

// An Opener is what a module of the namespace is after provisioning. It is a
// description: it has no connections, and is provisioned and cleaned up with
// its configuration.
type Opener interface {
	// Open makes the coordinator of the cluster with this name. It does not wait
	// for the system: whether that can be reached is seen by Read. It fails if
	// this machine lacks something, such as a file that the configuration names.
	Open(cluster string) (Coordinator, error)
}
