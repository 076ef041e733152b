// Package chaos tries to break Usher: the real Caddy, with real processes,
// under a load of everything that clients do, while instances, Caddy, the
// machine and the operator do everything to it at once.
//
// What is done, and when, is a plan that is drawn from a seed before anything
// starts, so a run can be repeated as far as a real machine allows. The load
// has a ledger: every request that is sent has one record there, with what
// became of it. The instances have a journal: what entered, where, and when.
// Caddy has its access log. After the run these books are held against each
// other and against the contract:
//
//   - every request has one outcome, and what was done to it allows that one;
//   - what Usher answered with an error of its own, no instance has seen;
//   - no instance had more requests inside than slots;
//   - requests were served in order of arrival, where that can be told;
//   - nothing was executed twice unless the retry rules allow it;
//   - when all is over nothing is left: no slot in use, no request in a queue, no
//     process, port, socket, record, file descriptor, goroutine or memory.
//
// A finding is printed with the request's record, what the journal, the access
// log and Caddy's log say about that time, and the plan around it.
//
//	go test ./test/chaos -chaos.duration 3m -chaos.seed 42
package chaos
