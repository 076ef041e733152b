//go:build !race

package process

const raceFactor = 1
