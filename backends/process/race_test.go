//go:build race

package process

// raceFactor is how much more CPU time the race detector may take.
const raceFactor = 5
