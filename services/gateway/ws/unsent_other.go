//go:build !linux

package ws

import "net"

// limitUnsent bounds the bytes that the system buffers for a connection. Without TCP_NOTSENT_LOWAT (see
// unsent_linux.go), the bound includes the bytes that were sent and not acknowledged.
func limitUnsent(c net.Conn) {
	if s, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		_ = s.SetWriteBuffer(2 * maxUnsent)
	}
}
