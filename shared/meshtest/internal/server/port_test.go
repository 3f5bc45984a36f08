package server

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A process has chosen a port for a server, but nothing listens on the port, because the server is stopped for a while.
// FreePort must not return this port to another process.
func TestFreePort_IsNotGivenToAnotherProcess(t *testing.T) {
	const tries = 500 // if two processes chose among 20,000 ports at random, they would share about a dozen ports
	if os.Getenv("FREE_PORT_CHILD") != "" {
		for range tries {
			port, err := FreePort()
			require.NoError(t, err)
			fmt.Println("port", port)
		}
		return
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	mine := map[int]bool{}
	for range tries {
		port, err := FreePort()
		require.NoError(t, err)
		require.False(t, mine[port])
		mine[port] = true
	}
	child := exec.Command(os.Args[0], "-test.run=^TestFreePort_IsNotGivenToAnotherProcess$", "-test.v")
	child.Env = append(os.Environ(), "FREE_PORT_CHILD=1")
	out, err := child.CombinedOutput()
	require.NoError(t, err, string(out))
	theirs := 0
	for line := range strings.Lines(string(out)) {
		if number, is := strings.CutPrefix(strings.TrimSpace(line), "port "); is {
			port, err := strconv.Atoi(number)
			require.NoError(t, err)
			require.False(t, mine[port], "port %d was returned twice", port)
			theirs++
		}
	}
	require.Equal(t, tries, theirs)
}
