package ws

import (
	"net"
	"syscall"
)

// tcpNotsentLowat is TCP_NOTSENT_LOWAT of tcp(7), which package syscall does not have.
const tcpNotsentLowat = 25

// limitUnsent bounds what the system takes of a connection beyond what is on its way to the client. Otherwise it takes
// megabytes: pings would wait behind them, and a client on a slow link would not seem to take anything for many seconds.
func limitUnsent(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, maxUnsent)
		})
	}
}
