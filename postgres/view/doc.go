// Package view is the coordinator of a cluster of Caddys in PostgreSQL: one row.
//
// It promises, beside what coordinator.Store says:
//   - A read is one statement on the server that takes writes, so it is linearizable
//     as long as there is one such server.
//   - A write is one statement that compares and replaces. It is sent once.
//   - A connection whose answer did not come in time is not used again.
//
// It never waits for news, holds no connection while it has nothing to do but one,
// and knows no cluster of Caddys but through coordinator.
package view
