//go:build race

package reserver

// shallower is how many steps fewer are explored with the race detector, which
// takes ten times as long and finds nothing in what is done in one goroutine.
const shallower = 2
