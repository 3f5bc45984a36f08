package pgerror

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/shared/retry"
)

// An error of the connection or of the server must be reported as unavailable, so that callers try again. An error of
// the data must not be reported as unavailable, because another attempt would fail as well.
func TestUnavailable_MatchesOnlyDatabaseErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		away bool
	}{
		"a lost connection":                 {io.ErrUnexpectedEOF, true},
		"a server that shuts down":          {&pgconn.PgError{Code: "57P01"}, true},
		"a value that is not text":          {&pgconn.PgError{Code: "22021"}, false},
		"a column that cannot be read":      {pgx.ScanArgError{ColumnIndex: 1, Err: errors.New("cannot scan NULL")}, false},
		"a scan error within another error": {fmt.Errorf("load: %w", pgx.ScanArgError{Err: errors.New("no time")}), false},
	} {
		if got := errors.Is(Unavailable(c.err), retry.ErrUnavailable); got != c.away {
			t.Errorf("%s: unavailable is %t, want %t", name, got, c.away)
		}
	}
}
