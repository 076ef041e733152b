//go:build !race

package scaler

const shallower = 0
