package ws

import (
	"net"
	"syscall"
)

// tcpNotsentLowat is TCP_NOTSENT_LOWAT of tcp(7), which package syscall does not define.
const tcpNotsentLowat = 25

// limitUnsent bounds the bytes that the system buffers for a connection and has not sent yet. Otherwise the system
// would buffer megabytes: pings would wait behind them, and a client on a slow link would seem to accept nothing for
// many seconds.
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
