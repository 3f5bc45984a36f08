package eventlog

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// ConflictError reports that a stream is not at the expected version.
type ConflictError struct {
	Stream   string
	Expected catalog.Version
	Actual   catalog.Version
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("append to %s at version %d: the stream is at version %d", e.Stream, e.Expected, e.Actual)
}

// RepeatedError contains the outcomes of those commands of a Write that have an outcome already, by the command's
// index. If the id of a command belongs to another command, the outcome is a refusal with the code id_reused.
type RepeatedError struct {
	Outcomes map[int]envelope.Outcome
}

func (e *RepeatedError) Error() string {
	return fmt.Sprintf("%d commands have an outcome already", len(e.Outcomes))
}

// RefusedError contains the refusals of those commands of a Write that the log refuses, by the command's index. A
// command is refused if its actor is not a member of the room in Decided.MemberOf, if the part in Decided.Requires does
// not exist, if a user would be in more rooms than BoundRooms allows, or if the stream of an Also with the field
// Otherwise is not at the expected version. Decide the other commands again, without the events of the refused ones.
type RefusedError struct {
	Refusals map[int]*refusal.Error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%d commands are refused by the log", len(e.Refusals))
}

// TimerError contains the indexes of those commands of a Write whose timer is gone or not due. These commands get no
// outcome. A timer that is not due yet stays set.
type TimerError struct {
	Commands map[int]bool
}

func (e *TimerError) Error() string {
	return fmt.Sprintf("%d commands were sent by timers that are gone or not due", len(e.Commands))
}

// WriteError reports that a Write itself is at fault, for example because an event cannot be encoded or stored. The
// Write fails whenever it is tried.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return "write rejected: " + e.Err.Error() }

func (e *WriteError) Unwrap() error { return e.Err }

// tooSlow reports whether the server ended a transaction because the transaction held the log's lock for longer than
// MaxHold.
func tooSlow(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "25P04" // transaction_timeout
}

// Unavailable wraps err so that it matches retry.ErrUnavailable. It does not wrap errors for which the data itself is
// at fault. It is exported for code that queries the log's schema directly.
func Unavailable(err error) error { return pgerror.Unavailable(err) }
