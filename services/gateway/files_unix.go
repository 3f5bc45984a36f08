//go:build unix

package gateway

import "syscall"

// maxConnections returns how many connections of clients the gateway accepts: nine tenths of the number of files that
// the process may open. If the number of files is unknown or above 1<<40, the result is 1<<40, practically no limit.
func maxConnections() int64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil || l.Cur > 1<<40 {
		return 1 << 40
	}
	return int64(l.Cur) * 9 / 10
}
