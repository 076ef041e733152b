// Package tasks proves that stored requests survive: thousands of them are handed in to
// real Caddys with real instances, while Caddys, instances and the database are killed.
//
// Clients keep a ledger of what they were promised. Instances write to one journal when
// an execution begins and ends, and the test writes there what it kills, just before it
// does. Each line is one append to one file, so the order of the lines is the order of
// the events, without a clock. At the end the package compares ledger, journal and
// store:
//
//   - Every request that was answered 202 has one outcome, which is the right one, and
//     its answer is kept. A restart of Caddy changes none of that.
//   - A client that got no answer and asked again with the same key has one task.
//   - No task is executed twice at the same time, and none without need: an execution
//     is repeated only if something was killed, or if it was to be. With `attempts 1`
//     it is never repeated.
//   - The tasks of a group are executed one at a time, in the order in which their
//     client handed them in, and what was cancelled before it began is not executed.
//
// What is handed in, what is killed and when are drawn from a seed, which is printed. A
// run can be repeated as far as a real machine allows. It is short by default:
//
//	go test ./test/tasks -v -timeout 30m -tasks.count 100000 -tasks.kills 20
//
// The tests of postgres/e2e do the same with several Caddys and PostgreSQL.
package tasks
