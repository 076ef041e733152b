// Package coordinatortest is the conformance suite for coordinators: what every
// coordinator.Store has to promise, and the Coordinator that is made over it.
// Run is called from a test of each store, with a Subject that says how to reach
// the system below it.
//
// It also has Memory, the one coordinator that needs no system.
package coordinatortest
