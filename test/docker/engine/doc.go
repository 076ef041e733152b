// Package engine runs a real Docker Engine, or a real Podman, for the tests: with
// its own data, socket and network, beside one that may run on the machine.
//
// It changes nothing of an engine of the machine. All that it starts, and the one
// firewall rule for its own addresses, ends with Close.
package engine
