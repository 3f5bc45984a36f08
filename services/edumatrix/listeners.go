package edumatrix

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// listener is the address at which a service of this process listens for calls of the other services.
type listener struct {
	host string
	port int
}

// innerListeners reads the addresses from the services' URLs. It returns an error for a URL that readListener does not
// accept, such as one of another machine: nothing would listen there, and the mesh would wait without end for that
// service.
func innerListeners(peers map[string]string) (map[string]listener, error) {
	all := map[string]listener{}
	for _, owner := range slices.Sorted(maps.Keys(peers)) {
		l, ok := readListener(peers[owner])
		if !ok {
			return nil, fmt.Errorf("%s has to look like http://localhost:port, because all services run in this process and "+
				"listen on loopback: remove the variable, or set it to a port of this machine", peerVariable(owner))
		}
		all[owner] = l
	}
	return all, nil
}

// readListener returns the address in a URL such as http://localhost:3003. It accepts only the scheme http, localhost
// or a loopback IP address, and a port, without a user, path, query or fragment.
func readListener(address string) (l listener, ok bool) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return l, false
	}
	l.host = u.Hostname()
	if strings.EqualFold(l.host, "localhost") {
		l.host = "127.0.0.1"
	}
	ip := net.ParseIP(l.host)
	l.port, err = strconv.Atoi(u.Port())
	return l, err == nil && l.port > 0 && l.port <= 65535 && ip != nil && ip.IsLoopback()
}

// peerVariable returns the name of the environment variable with the URL of a service.
func peerVariable(owner string) string { return strings.ToUpper(owner) + "_URL" }
