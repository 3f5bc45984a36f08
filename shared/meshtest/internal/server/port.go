package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports below those that the kernel gives to outgoing connections: none of these can take one before its server does.
const (
	firstPort = 12000
	lastPort  = 32000
)

var ports = struct {
	sync.Mutex
	given map[int]bool
}{given: map[int]bool{}}

// FreePort is a port of loopback on which nobody listens, and which this process has not been given before.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	var problem error
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if ports.given[port] {
			continue
		}
		var l net.Listener
		if l, problem = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); problem != nil {
			continue
		}
		ports.given[port] = true
		return port, l.Close()
	}
	return 0, errors.Join(errors.New("find a free port"), problem)
}
