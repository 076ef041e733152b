// Package kubernetes is the coordinator of a cluster of Caddys in Kubernetes:
// one ConfigMap.
//
// It owns the ConfigMap's key `view`, and leaves everything else in it alone.
// Compare-and-swap is by the resource version, and reads go to the API server's
// own store: no cache is asked.
//
// It promises, beside what coordinator.Store says:
//   - No write is repeated, neither by this package nor by client-go. The one
//     exception is a write that the API server has refused because of the
//     credentials: these are read again, since they may have been renewed.
//   - Only an API server's own word that the ConfigMap is missing counts as no
//     view. A proxy's word does not.
//   - A connection whose answer did not come in time is not used again.
//
// It never watches, and never deletes the ConfigMap.
package kubernetes
