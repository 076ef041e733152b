// Package coordinator is the contract between a cluster of Caddys and the
// system that keeps its one object: the view, which says who leads and who are
// the members.
//
// It owns the interface Coordinator, the encoding of the view, and the way from
// a store with compare-and-swap to a Coordinator (Over). A module for a system
// implements Store and Opener; the suite in coordinatortest says whether it
// keeps the promises.
//
// It promises:
//   - A view is read as it was at some moment between the question and the
//     answer, or not at all. An object that cannot be decoded, or is of another
//     cluster, is an error and never a missing view.
//   - A swap replaces the expected view and no other, or changes nothing. Its
//     result is never better than what is known: Failed means that the swap did
//     not happen and never will.
//   - An answer comes soon after the context ends.
//
// It never repeats a write whose result is not known, starts no goroutine, and
// knows neither Caddy nor a platform.
package coordinator
