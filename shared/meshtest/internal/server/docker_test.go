//go:build integration

package server

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// engine is a shell script that stands in for the docker command, because not every machine has Docker. Its
// "containers" are processes of this machine. It accepts only the commands that this package may send.
const engine = `#!/bin/sh
set -e
PATH=/usr/local/bin:/usr/bin:/bin
cd "$ENGINE"
echo "$*" >>asked
case "$1" in
version) exit 0 ;;
create)
	test "$2" = --name
	name=$3
	test "$4" = --publish
	shift 5
	test "$1" = redis:7.4-alpine
	shift
	mkdir "$name"
	for arg; do printf '%s\n' "$arg"; done >"$name/command" ;;
start)
	test "$2" = --attach
	cd "$3"
	echo $$ >pid
	set --
	while IFS= read -r arg; do set -- "$@" "$arg"; done <command
	exec "$@" ;;
stop) kill -TERM "$(cat "$4/pid")" ;;
kill) kill -KILL "$(cat "$2/pid")" ;;
pause) kill -STOP "$(cat "$2/pid")" ;;
unpause) kill -CONT "$(cat "$2/pid")" ;;
inspect) cat "$4/pid" ;;
rm) rm -r "$4" ;;
*) echo "unknown: $*" >&2; exit 1 ;;
esac
`

// TestDocker_RunsAServerWhereTheMachineHasNone is not parallel, because it changes the environment.
func TestDocker_RunsAServerWhereTheMachineHasNone(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte(engine), 0o755))
	t.Setenv("ENGINE", dir)
	t.Setenv("PATH", dir)

	r, err := StartRedis(t.Context())
	require.NoError(t, err)
	pid := r.PID()
	require.NoError(t, syscall.Kill(pid, 0))
	client, err := r.Settings().Open(t.Context())
	require.NoError(t, err)
	require.NoError(t, client.Set(t.Context(), "kept", "yes", 0).Err())
	require.NoError(t, r.Freeze())
	require.NoError(t, r.Thaw())
	for _, end := range []func() error{r.Stop, r.Kill} {
		require.NoError(t, end())
		require.NoError(t, r.Start(t.Context()))
		require.NotEqual(t, pid, r.PID())
		kept, err := client.Get(t.Context(), "kept").Result()
		require.NoError(t, err)
		require.Equal(t, "yes", kept)
	}
	require.NoError(t, client.Close())

	pid = r.PID()
	require.NoError(t, r.Remove())
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(asked)), "\n")
	require.Equal(t, "rm --force --volumes "+r.container, lines[len(lines)-1])
	_, err = os.Stat(r.dir)
	require.True(t, errors.Is(err, os.ErrNotExist))
}

// TestStart_ReportsThatNoServerCanBeStarted is not parallel, because it changes the environment.
func TestStart_ReportsThatNoServerCanBeStarted(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	before := engineAnswers
	engineAnswers = func() bool { return false }
	t.Cleanup(func() { engineAnswers = before })
	_, err := StartRedis(t.Context())
	require.ErrorIs(t, err, errNoRedis)
	_, err = StartKafka(t.Context(), nil, 0)
	require.ErrorIs(t, err, errNoKafka)
}

func TestStart_ReturnsTheOutputOfTheServer(t *testing.T) {
	t.Parallel()
	r, err := StartRedis(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Remove()) }()
	require.NoError(t, r.Stop())
	command := r.command
	r.command = func() *exec.Cmd {
		cmd := command()
		cmd.Args = append(cmd.Args, "--no-such-setting", "yes")
		return cmd
	}
	require.ErrorContains(t, r.Start(t.Context()), "no-such-setting")
}
