package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/edumatrix/interlinked/shared/filelock"
)

// FreePort chooses from this range. On Linux the kernel assigns ports above 32,767 to outgoing connections, so no
// outgoing connection takes a port between the call of FreePort and the start of the server.
const (
	firstPort = 12000
	lastPort  = 32000
)

var ports = struct {
	sync.Mutex
	given map[int]*filelock.Lock
}{given: map[int]*filelock.Lock{}}

// FreePort returns a free port of loopback. Until this process ends, FreePort does not return the same port again, in
// this process or in another process of the same account. So a server may be stopped and started again while other
// tests run.
func FreePort() (int, error) {
	cache, err := cacheDir()
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	dir := filepath.Join(cache, "ports")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	ports.Lock()
	defer ports.Unlock()
	var problem error
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if ports.given[port] != nil {
			continue // this process has the port's lock already, and on some file systems could take the lock twice
		}
		var lock *filelock.Lock
		if lock, problem = filelock.Try(filepath.Join(dir, strconv.Itoa(port))); problem != nil {
			continue
		}
		var l net.Listener
		if l, problem = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); problem != nil {
			lock.Release()
			continue
		}
		ports.given[port] = lock
		return port, l.Close()
	}
	return 0, errors.Join(errors.New("find a free port"), problem)
}
