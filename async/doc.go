// Package async executes requests later that were stored first: tasks.
//
// It owns what a task is and which states it has, the contract for stores (Store),
// and the dispatcher, which executes the tasks of a store. Stores are guest modules,
// usher.stores.*; storetest is the suite that each of them passes. What the
// dispatcher needs of the program is Services: slots of instances, in the order in
// which the program gives them out.
//
// It promises, with any store:
//   - A task that was accepted is on stable storage. It survives the end of every
//     process and a power loss.
//   - A task ends in one recorded outcome: done, failed, dead or cancelled. Until
//     then it is pending or running. It is executed at least once, unless it
//     expires or is cancelled before; with one attempt, it is executed at most once.
//   - At most one attempt of a task can be settled. Attempts have numbers, and an
//     attempt that is not the latest one is stale. No clock decides about that.
//   - The tasks of a group run one at a time, in the order in which they were
//     accepted, also over attempts. Of all tasks with the same exclusive name one
//     runs at a time, whatever their queues.
//   - An attempt begins only with a slot in hand. Tasks of a service that takes no
//     requests wait, and no attempt is spent on them. Tasks that wait are in the
//     store alone: a million of them need no more memory than a few.
//
// It never opens a connection, and knows neither Caddy nor a platform. It reads no
// wall clock: stores tell how long something is from now.
package async
