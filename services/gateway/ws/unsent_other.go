//go:build !linux

package ws

import "net"

// limitUnsent bounds what the system takes of a connection. Where it cannot tell what was sent from what was not, that
// also bounds how much is on its way.
func limitUnsent(c net.Conn) {
	if s, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		_ = s.SetWriteBuffer(2 * maxUnsent)
	}
}
