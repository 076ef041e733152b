// Package async executes requests later that were stored first: tasks.
//
// It owns the contract for stores (Store), what a task is and which states it has.
// Stores are guest modules, usher.stores.*; storetest is the suite that each of
// them passes.
//
// It promises, with any store:
//   - A task that was accepted is on stable storage. It survives the end of every
//     process and a power loss.
//   - A task ends in one recorded outcome: done, failed, dead or cancelled. Until
//     then it is pending or running. It is executed at least once, unless it
//     expires or is cancelled before.
//   - At most one attempt of a task can be settled. Attempts have numbers, and an
//     attempt that is not the latest one is stale. No clock decides about that.
//   - The tasks of a group run one at a time, in the order in which they were
//     accepted, also over attempts. Of all tasks with the same exclusive name one
//     runs at a time, whatever their queues.
//
// It never opens a connection, and knows neither Caddy nor a platform. It reads no
// wall clock: stores tell how long something is from now.
package async
