package backend

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVerify_ChecksTheVersionOfRedis(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{"6.2.14": "fail", "7.0.15": "warn", "7.2": "warn", "7.4.1": "ok",
		"8.0.0": "ok", "10.1.2": "ok", "unknown": "warn"} {
		f, err := judgeRedis(version)
		require.Equal(t, want == "fail", err != nil, version)
		require.Equal(t, want == "warn", f.warn, version)
	}
}
