package caddymodule

import "golang.org/x/sys/unix"

// tcpEstablished is the state of a TCP connection that neither side has begun
// to close.
const tcpEstablished = 1

func lookAt(fd uintptr) linkState {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err != nil || info.State != tcpEstablished:
		return linkDead
	case info.Probes > 0 || info.Retransmits > 0:
		return linkSilent
	}
	return linkAlive
}
