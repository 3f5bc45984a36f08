// Package refusal is the answer to a wish that is not granted: a code that programs rely on and a text for people.
package refusal

import (
	"errors"
	"fmt"
	"time"
)

// Error is a refusal. Its code never changes for what it stands for.
type Error struct {
	Code string
	Text string
	// Field is the path of the field that was wrong; empty where it is not about one.
	Field string
	// RetryAfter is how long to wait before the same is sent again; 0: see the code.
	RetryAfter time.Duration
	// TraceID names the trace in which it happened, for operators; empty: it is not recorded.
	TraceID string
}

func (e *Error) Error() string { return e.Code + ": " + e.Text }

// New makes a refusal with a text for people.
func New(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// NewField makes a refusal of a field: the text says what is wrong with it, and follows its path.
func NewField(path, format string, args ...any) *Error {
	return &Error{Code: InvalidField, Text: path + " " + fmt.Sprintf(format, args...), Field: path}
}

// Codes that are not of one domain.
const (
	IDReused       = "id_reused"        // the command id stands for another command already
	Expired        = "expired"          // it came later than it was worth doing
	Failed         = "failed"           // it could not be decided; it is kept as a dead letter
	Queued         = "queued"           // taken, not decided yet; the outcome follows
	Unavailable    = "unavailable"      // not known to be taken: send it again with the same id
	Malformed      = "malformed"        // no JSON, or a frame without what every frame has
	UnknownType    = "unknown_type"     // neither a command nor a query that clients may use
	InvalidField   = "invalid_field"    // a field that is unknown, of the wrong type, or out of its bounds
	Unauthorized   = "unauthorized"     // no token, or one that does not hold
	TooManyWaiting = "too_many_waiting" // more commands without outcome than a connection may have
	TooMany        = "too_many"         // more of something than one may have
	NotAMember     = "not_a_member"
	NotFound       = "not_found"
	Internal       = "internal"
)

// Of finds the refusal in an error.
func Of(err error) (*Error, bool) {
	var r *Error
	ok := errors.As(err, &r)
	return r, ok
}
