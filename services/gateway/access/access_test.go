package access

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestToken_IsReadAsClientsWriteIt(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"": "", "Bearer t": "t", "bearer t": "t", "BEARER  t  ": "t", "Bearer\tt": "t", " Bearer t": "t", "Bearer t u": "t u",
		"Basic dXNlcjpwdw==": "", "Bearertoken": "", "Negotiate": "", "Bearer Bearer t": "Bearer t",
	} {
		r := httptest.NewRequest(http.MethodGet, "/ws", nil)
		r.Header.Set("Authorization", header)
		token, err := Token(r)
		require.NoError(t, err, header)
		require.Equal(t, want, token, header)
	}
	for _, headers := range [][]string{{"Bearer"}, {"bearer \t "}, {"Bearer t", "Bearer t"}, {"", ""}} {
		r := httptest.NewRequest(http.MethodGet, "/ws", nil)
		r.Header["Authorization"] = headers
		_, err := Token(r)
		require.ErrorContains(t, err, "Authorization", headers)
	}
}

func TestOrigin_ARefusedOneIsLoggedOnceAMinuteAndClipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := &Access{Log: slog.New(slog.NewTextHandler(&log, nil))}
		asks := func(origin string) {
			r := httptest.NewRequest(http.MethodPost, "/api/"+strings.Repeat("p", 30_000), nil)
			r.Header.Set("Origin", origin)
			require.False(t, a.Origin(r))
		}
		lines := func() int { return strings.Count(log.String(), "\n") }
		long := "https://" + strings.Repeat("é", 15_000) + ".example"
		for range 100 {
			asks(long)
		}
		require.Equal(t, 1, lines())
		require.Less(t, log.Len(), 1000)
		for n := range 1000 {
			asks(fmt.Sprint("https://other", n, ".example"))
		}
		require.Equal(t, 16, lines(), "invented origins must not fill the log")
		time.Sleep(time.Minute)
		asks(long)
		require.Equal(t, 17, lines())
	})
}
