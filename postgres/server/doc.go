// Package server is how Usher reaches a PostgreSQL database: it reads the DSN,
// connects, and makes the tables of those that use it.
//
// It promises:
//   - No text that it returns has a secret of the DSN in it.
//   - A connection leads to a server that takes writes, and confirms a commit only
//     when it is on stable storage.
//   - Tables are made and changed by one process at a time, in one transaction. What
//     a newer Usher has made is left as it is.
//
// It never retries a call, and starts no goroutine.
package server
