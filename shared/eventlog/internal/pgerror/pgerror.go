// Package pgerror distinguishes errors of the data from errors of the database, for the packages that keep tables in
// the schema of a log. Work whose data is at fault fails again whenever it is tried; all other work is worth a retry.
package pgerror

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/shared/retry"
)

// dataError is an error of the data itself. The database is not at fault.
type dataError struct{ err error }

func (e *dataError) Error() string { return e.err.Error() }

func (e *dataError) Unwrap() error { return e.err }

// Data marks an error as caused by the data that was written or read. It keeps the error's text.
func Data(err error) error { return &dataError{err} }

// IsData reports whether the data that was written or read is at fault. All other errors are attributed to the
// database, such as lost or refused connections, exhausted resources, time-outs, a server that shuts down or has become
// a standby, and missing schemas, tables or rights.
func IsData(err error) bool {
	var own *dataError
	if errors.As(err, &own) || errors.As(err, new(pgx.ScanArgError)) {
		return true // reading the row again would fail the same way
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code {
	case "42P01", "42501": // undefined_table, insufficient_privilege
		return false
	}
	// Classes of SQLSTATE (PostgreSQL, appendix A) in which the database is at fault: 08 connection, 25 transaction
	// state, 28 authorization, 3D and 3F missing database or schema, 40 rollback such as a deadlock, 53 resources, 55
	// object state such as a lock, 57 operator intervention such as a shutdown, 58 system, F0 configuration, XX internal.
	return !strings.Contains(" 08 25 28 3D 3F 40 53 55 57 58 F0 XX ", " "+pg.Code[:2]+" ")
}

// Unavailable wraps err so that it matches retry.ErrUnavailable. It does not wrap nil and errors for which the data
// itself is at fault.
func Unavailable(err error) error {
	if err == nil || IsData(err) {
		return err
	}
	return retry.Unavailable("postgres", err)
}
