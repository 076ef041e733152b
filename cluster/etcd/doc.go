// Package etcd is the coordinator of a cluster of Caddys in etcd: one key.
//
// It speaks the gRPC interface of etcd, version 3, with three calls: Range, Txn
// and Authenticate. Caddy has a gRPC client already, and the few messages are
// written by hand (wire.go): etcd's own client would add ten times the size of
// the rest of this package.
//
// It promises, beside what coordinator.Store says:
//   - Reads are linearizable: a member of the etcd cluster answers only if it
//     has asked the others.
//   - A call goes to the next endpoint if one cannot be reached, and a read also
//     if one does not answer. A write that may have been sent goes to no other.
//   - A connection whose answer did not come in time is not used again.
//
// It never watches, takes no lease, and knows no cluster of Caddys but through
// coordinator.
package etcd
