package embedded_test

import (
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

func splitPort(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(port)
	return host, n, err
}

func TestRedis_ExpiresKeys(t *testing.T) {
	t.Parallel()
	r, err := embedded.StartRedis(embedded.RedisOptions{Password: "p@ss/word"})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	client, err := backend.Redis{URL: r.URL()}.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })

	require.NoError(t, client.Set(t.Context(), "short", "x", 300*time.Millisecond).Err())
	require.NoError(t, client.Set(t.Context(), "long", "x", time.Hour).Err())
	require.Equal(t, "x", client.Get(t.Context(), "short").Val())
	require.Eventually(t, func() bool { return client.Exists(t.Context(), "short").Val() == 0 },
		5*time.Second, 20*time.Millisecond)
	require.Equal(t, "x", client.Get(t.Context(), "long").Val())
}

func TestRedis_RequiresItsPasswordAndAFreePort(t *testing.T) {
	t.Parallel()
	r, err := embedded.StartRedis(embedded.RedisOptions{Password: "secret"})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	options, err := redis.ParseURL(r.URL())
	require.NoError(t, err)
	host, port, err := splitPort(options.Addr)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1", host)

	_, err = backend.Redis{Host: host, Port: port}.Open(t.Context())
	require.ErrorContains(t, err, "Redis at "+options.Addr)
	require.ErrorContains(t, err, "NOAUTH")
	_, err = backend.Redis{Host: host, Port: port, Password: "wrong!"}.Open(t.Context())
	require.ErrorContains(t, err, "WRONGPASS")
	require.NotContains(t, err.Error(), "wrong!")

	_, err = embedded.StartRedis(embedded.RedisOptions{Port: port})
	require.ErrorContains(t, err, fmt.Sprintf("port %d of 127.0.0.1 is in use", port))
}
