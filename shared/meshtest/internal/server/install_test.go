package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// machine imitates a machine that has only the given programs, each of which is a script. It also sets variables that
// name servers elsewhere: these must not change which packages are reported as missing.
func machine(t *testing.T, programs map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range programs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	t.Setenv("PATH", dir)
	t.Setenv("KAFKA_BROKERS", "elsewhere:9092")
	t.Setenv("REDIS_URL", "redis://elsewhere:6379/0")
}

func TestMissing_ReturnsMissingAndOutdatedPackages(t *testing.T) {
	const java17 = `echo 'openjdk version "17.0.15" 2025-04-15' >&2`
	const redis7 = `echo 'Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64'`
	for name, c := range map[string]struct {
		programs map[string]string
		want     []string
	}{
		"no program installed":   {nil, []string{"redis-server", "default-jre-headless", "maven"}},
		"all programs installed": {map[string]string{"java": java17, "mvn": "", "redis-server": redis7}, nil},
		"old Java":               {map[string]string{"java": `echo 'openjdk version "11.0.2"' >&2`, "mvn": "", "redis-server": redis7}, []string{"default-jre-headless"}},
		"no Java":                {map[string]string{"java": "exit 1", "mvn": "", "redis-server": redis7}, []string{"default-jre-headless"}},
		"old Redis":              {map[string]string{"java": java17, "mvn": "", "redis-server": "echo 'Redis server v=6.0.16 sha=0'"}, []string{"redis-server"}},
	} {
		t.Run(name, func(t *testing.T) {
			machine(t, c.programs)
			require.Equal(t, c.want, missing(t.Context(), All))
			require.Empty(t, missing(t.Context(), []string{"postgres"}))
		})
	}
}

func TestRedis_RefusesAnOldVersion(t *testing.T) {
	machine(t, map[string]string{"redis-server": "echo 'Redis server v=6.0.16 sha=00000000:0'"})
	_, err := redisProgram(t.Context())
	require.ErrorContains(t, err, "redis-server is version 6.0.16, and the tests need Redis 7.0 or later")
}

func TestJavaMajor_ReadsTheOutputOfJava(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]int{
		"Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version \"17.0.15\" 2025-04-15\nOpenJDK": 17,
		`java version "1.8.0_392"`: 8, `openjdk version "21" 2023-09-19`: 21, `openjdk version "24-ea"`: 24,
		"The operation couldn't be completed. Unable to locate a Java Runtime.": 0,
	} {
		require.Equal(t, want, javaMajor(said), said)
	}
}

func TestBecomeRoot_UsesASudoWithoutAPassword(t *testing.T) {
	machine(t, map[string]string{"sudo": `[ "$*" = "-n true" ]`})
	before, may := becomeRoot(t.Context(), 1000)
	require.True(t, may)
	require.Equal(t, []string{"sudo", "-n"}, before)
	before, may = becomeRoot(t.Context(), 0)
	require.True(t, may)
	require.Empty(t, before)

	machine(t, map[string]string{"sudo": "echo a password is required >&2; exit 1"})
	_, may = becomeRoot(t.Context(), 1000)
	require.False(t, may)
	machine(t, nil)
	_, may = becomeRoot(t.Context(), 1000)
	require.False(t, may, "there is no sudo")
}
