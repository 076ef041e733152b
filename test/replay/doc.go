// Replay lets traces of requests, real ones and made ones, pass through the
// real control loop, the real reserver and the real policies, and prints what
// each policy costs and how long it makes clients wait.
//
// It owns the simulator (world), the traces and how requests are made of them,
// the policies of other systems as their authors describe them (peers), and the
// tables. It promises: the loop, the reserver and the policies of Usher are the
// ones that serve; only the platform and the clients are made up. The seed
// gives the same requests, service times and start times again.
//
// It never opens a port and needs no file outside its own testdata. All time
// passes in a bubble of testing/synctest, so it is a test binary in disguise:
// main hands its work to testing.Main.
package main
