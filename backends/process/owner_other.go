//go:build !linux

package process

// checkOwner knows nothing here: the probe decides.
func checkOwner(int, *child, string) error { return nil }
