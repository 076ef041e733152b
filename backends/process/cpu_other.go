//go:build !linux

package process

// TellsCPU says that instances cannot be asked how much they work.
func (b *Backend) TellsCPU() bool { return false }
