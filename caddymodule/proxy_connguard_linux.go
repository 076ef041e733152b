package caddymodule

import "golang.org/x/sys/unix"

// tcpEstablished is the state of a TCP connection that neither side has begun
// to close.
const tcpEstablished = 1

func lookAt(fd uintptr) connState {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err != nil || info.State != tcpEstablished:
		return connDead
	case info.Probes > 0 || info.Retransmits > 0:
		return connSilent
	}
	return connAlive
}
