//go:build !linux

package process

// prepareThread has nothing to do: what hangs on the thread is Linux's.
func prepareThread() {}
