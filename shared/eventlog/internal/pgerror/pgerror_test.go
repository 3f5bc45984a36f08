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

// A message waits for a database that is away. It must not wait for one that is there and has a row that cannot be read.
func TestAway_IsADatabaseThatCannotBeReached(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		away bool
	}{
		"a connection that is lost":      {io.ErrUnexpectedEOF, true},
		"a server that stops":            {&pgconn.PgError{Code: "57P01"}, true},
		"a value that is not text":       {&pgconn.PgError{Code: "22021"}, false},
		"a column that cannot be read":   {pgx.ScanArgError{ColumnIndex: 1, Err: errors.New("cannot scan NULL")}, false},
		"such a column in another error": {fmt.Errorf("load: %w", pgx.ScanArgError{Err: errors.New("no time")}), false},
	} {
		if got := errors.Is(Unavailable(c.err), retry.ErrUnavailable); got != c.away {
			t.Errorf("%s: away is %t, want %t", name, got, c.away)
		}
	}
}
