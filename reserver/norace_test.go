//go:build !race

package reserver

const shallower = 0
