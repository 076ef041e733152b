//go:build !linux

package process

// hasRight is not asked for here: there are no capabilities.
func hasRight(string) bool { return true }

// outlivesCaddy is the same for all programs here.
func outlivesCaddy(string) bool { return false }
