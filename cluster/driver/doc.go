// Package driver runs a [cluster.Node]: it gives it the clocks, the messages of
// the other Caddys, the coordinator and the reservers of this process.
//
// It owns the goroutine that takes the Node's steps, the streams to the other
// Caddys, the calls to the coordinator, and the search for proof that a Caddy
// has ended.
//
// It promises:
//
//   - Steps are taken one after the other, and what a step says is carried out
//     in its order before the next one.
//   - Nothing that waits is done between two steps: messages go to the queue of
//     a stream, and the coordinator is asked elsewhere. It is answered for
//     within half a lease, if need be with "unknown".
//   - Messages of one Caddy are handled in the order in which they were sent.
//     Once a newer stream to it stands, the older one delivers nothing.
//   - [Driver.MayWrite] takes no lock and makes no garbage.
//   - After [Driver.Close] nothing of it runs any more.
//
// It decides nothing: who leads, who may have which slots and when a lost
// Caddy's slots are used again is the Node's to say. It knows neither Caddy nor
// a platform.
package driver
