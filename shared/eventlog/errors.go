package eventlog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// ConflictError says that a stream is not at the version that was expected.
type ConflictError struct {
	Stream   string
	Expected int64
	Actual   int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("append %s at version %d: it is at %d", e.Stream, e.Expected, e.Actual)
}

// RepeatedError says which commands of a Write, by their index, have outcomes already. Where the same id stands for
// another type or stream the outcome given is a refusal with the code id_reused.
type RepeatedError struct {
	Outcomes map[int]envelope.Result
}

func (e *RepeatedError) Error() string {
	return fmt.Sprintf("%d commands have an outcome already", len(e.Outcomes))
}

// RefusedError contains the commands of a Write, by their index, that are refused by what was read under the log's lock:
// the membership of their actor, or the version of another stream. Decide the others again without their events.
type RefusedError struct {
	Refusals map[int]*refusal.Error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%d commands are refused by what they rest on", len(e.Refusals))
}

// TimerError contains the commands of a Write, by their index, whose timer is not there any more, or is not due. They
// have no outcome; a timer that is not due yet stays.
type TimerError struct {
	Commands map[int]bool
}

func (e *TimerError) Error() string {
	return fmt.Sprintf("%d commands come of timers that are gone or not due", len(e.Commands))
}

// MemberError is why a Write fails whenever it is tried.
type MemberError struct{ Err error }

func (e *MemberError) Error() string { return "this write fails by itself: " + e.Err.Error() }

func (e *MemberError) Unwrap() error { return e.Err }

// ownFault is an error that has nothing to do with whether the database is there.
type ownFault struct{ err error }

func (e *ownFault) Error() string { return e.err.Error() }

func (e *ownFault) Unwrap() error { return e.err }

// ofData reports whether an error lies in what was written or read. Everything else is the database's: connections lost
// or refused, resources, time-outs, a server that shuts down or has become a standby, a schema or rights that are
// missing.
func ofData(err error) bool {
	var own *ownFault
	if errors.As(err, &own) || errors.As(err, new(pgx.ScanArgError)) {
		return true // a row that this program cannot read stays as it is, however often it is read
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code {
	case "42P01", "42501":
		return false
	}
	return !strings.Contains(" 08 25 28 3D 3F 40 53 55 57 58 F0 XX ", " "+pg.Code[:2]+" ")
}

// tooSlow says that the server ended a transaction because it held the log's lock for too long.
func tooSlow(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "25P04"
}

// Away marks errors that are no fault of what was asked for as those of a database that is away (bus.ErrAway). Callers
// that read the projections of a log by themselves use it as well.
func Away(err error) error {
	if err == nil || ofData(err) {
		return err
	}
	return bus.Away("postgres", err)
}
