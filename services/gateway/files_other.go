//go:build !unix

package gateway

// maxConnections returns how many connections of clients the gateway accepts.
func maxConnections() int64 { return 1 << 40 }
