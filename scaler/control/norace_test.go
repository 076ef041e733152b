//go:build !race

package control

const shallower = 0
