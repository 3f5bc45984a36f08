package deployments_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// makeEnv runs env.sh with the name of a file, and returns the output of env.sh.
func makeEnv(t *testing.T, file string) (said string, err error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "env.sh", file).CombinedOutput()
	return string(out), err
}

func values(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			require.NotContains(t, all, name, "twice")
			all[name] = value
		}
	}
	return all
}

func requireMode(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestEnv_GeneratesSecretsThatOnlyTheirOwnerCanRead(t *testing.T) {
	t.Parallel()
	one, other := filepath.Join(t.TempDir(), ".env"), filepath.Join(t.TempDir(), ".env")
	seen := map[string]bool{}
	for _, file := range []string{one, other} {
		said, err := makeEnv(t, file)
		require.NoError(t, err, said)
		requireMode(t, file)
		made := values(t, file)
		require.Len(t, made, 3)
		for _, name := range []string{"POSTGRES_PASSWORD", "REDIS_PASSWORD", "JWT_SECRET"} {
			require.Regexp(t, `^[0-9a-f]{64}$`, made[name])
			require.False(t, seen[made[name]], "every secret must be different")
			seen[made[name]] = true
			require.NotContains(t, said, made[name], "a secret must not be printed")
		}
	}
}

func TestEnv_NeverOverwrites(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	_, err := makeEnv(t, file)
	require.NoError(t, err)
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	said, err := makeEnv(t, file)
	require.NoError(t, err, said)
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}

func TestEnv_AddsMissingVariables(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	ours := "# ours\nexport REDIS_PASSWORD = mine\nALLOWED_ORIGINS=https://a.example"
	require.NoError(t, os.WriteFile(file, []byte(ours), 0o644))
	said, err := makeEnv(t, file)
	require.NoError(t, err, said)
	requireMode(t, file)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), ours+"\nPOSTGRES_PASSWORD="), string(text))
	require.Equal(t, 1, strings.Count(string(text), "REDIS_PASSWORD"))
	require.Contains(t, string(text), "\nJWT_SECRET=")
}

func TestEnv_ReportsWhyItFails(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), ".env")
	require.NoError(t, os.WriteFile(empty, []byte("JWT_SECRET=\n"), 0o600))
	said, err := makeEnv(t, empty)
	require.Error(t, err)
	require.Contains(t, said, "JWT_SECRET is empty")

	said, err = makeEnv(t, filepath.Join(t.TempDir(), "none", ".env"))
	require.Error(t, err)
	require.Contains(t, said, "cannot be written")
	said, err = makeEnv(t, t.TempDir())
	require.Error(t, err)
	require.Contains(t, said, "is not a file")
}

func TestEnv_GeneratesEverySecretThatComposeNeeds(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), ".env")
	said, err := makeEnv(t, file)
	require.NoError(t, err, said)
	var env []string
	for name, value := range values(t, file) {
		env = append(env, name+"="+value)
	}
	_, err = load(env...)
	require.NoError(t, err)
}
