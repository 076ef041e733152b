// Package file is the store of tasks that is embedded in Caddy: one file that
// bbolt keeps, and files beside it for large bodies. One process uses it at a time.
//
// It promises what async.Store says, and:
//   - All writers that wait go into one transaction, so the cost of a sync is shared.
//   - Bodies and answers above 64 KiB are files of their own. Such a file and its
//     directory are synced before the record that names it is written.
//   - The time of the store never goes back, and changes of the system's clock do
//     not touch it while the store is open. After an opening it goes on from where it
//     was, or from the system's clock if that is later.
//   - After a failed sync it writes nothing any more until it is opened again: what
//     is on the disk then is not known. A full disk is no such failure. What is
//     stored stays readable.
//   - With a key, everything that comes from requests is encrypted, but for the names
//     of queues and exclusive names.
//
// It never runs in the background: a caller that waits writes for all that wait.
package file
