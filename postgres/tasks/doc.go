// Package tasks is the store of tasks in PostgreSQL, for several Caddys.
//
// It promises what async.Store says, and:
//   - The clock is that of the database. Whether an owner lives is not told by a
//     clock that can jump: its beats are counted, and it is gone when another process
//     has seen none for the time of the lease.
//   - A claim waits for no other one: rows that another transaction holds are
//     skipped.
//   - A transaction that was not yet to be committed when its connection broke is
//     repeated. Tasks whose claim was committed without an answer are given back.
//   - All tasks that wait to be accepted go into one transaction.
//   - With a key, everything that comes from requests is encrypted, but for the names
//     of queues and exclusive names.
//
// Locks are taken in one order, so that no two transactions wait for each other:
// advisory locks, sorted, and then rows. Rows of several tasks are skipped if they are
// locked.
package tasks
