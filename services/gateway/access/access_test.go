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

func TestOrigin_OfOthersIsLoggedOnceAMinuteAndClipped(t *testing.T) {
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
		require.Equal(t, 16, lines(), "whoever invents origins does not fill the log")
		time.Sleep(time.Minute)
		asks(long)
		require.Equal(t, 17, lines())
	})
}
