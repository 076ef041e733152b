// Package storetest is the conformance suite for stores of tasks: what every
// async.Store has to promise. Run is called from a test of each store, with a
// Subject that says how to reach it.
//
// Some checks run the test's own binary again, as a process that is killed. So the
// test that calls Run does nothing before that it should not do in such a process.
package storetest
