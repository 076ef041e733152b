//go:build !linux

package process

func watchFor(path string) appearance { return newSocketPoller(path) }
