//go:build !linux

package ws

import "net"

// limitUnsent bounds the bytes that the system buffers of a connection. Without TCP_NOTSENT_LOWAT that includes the
// bytes on their way to the client.
func limitUnsent(c net.Conn) {
	if s, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		_ = s.SetWriteBuffer(2 * maxUnsent)
	}
}
