//go:build !linux

package process

// boundOutput does nothing: the output of kept instances is bounded without
// Caddy on Linux only.
func (r *runner) boundOutput() {}

func trimNoMore(string) {}
