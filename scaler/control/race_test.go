//go:build race

package control

// shallower is how many steps fewer are explored with the race detector, which
// takes ten times as long; chaos is what it is for.
const shallower = 2
