//go:build !unix

package gateway

// maxConnections returns how many connections of clients the gateway accepts: a practically unlimited number, because
// the limit of open files is unknown.
func maxConnections() int64 { return 1 << 40 }
