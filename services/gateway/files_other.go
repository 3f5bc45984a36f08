//go:build !unix

package gateway

// maxConnections is how many connections of clients there may be.
func maxConnections() int64 { return 1 << 40 }
