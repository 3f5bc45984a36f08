// Package refusal defines a rejected request: a code for programs and a text for people.
package refusal

import (
	"errors"
	"fmt"
	"time"
)

// Error is a refusal. Its code is stable.
type Error struct {
	Code string
	Text string
	// Field is the path of the invalid field; empty if the refusal is not about a field.
	Field string
	// RetryAfter is how long to wait before sending the request again; 0: see the code.
	RetryAfter time.Duration
	// TraceID is the id of the trace of the request, for operators; empty: it was not recorded.
	TraceID string
}

func (e *Error) Error() string { return e.Code + ": " + e.Text }

// New returns a refusal with a text for people.
func New(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// NewField returns a refusal of a field. The text describes what is wrong with it, and follows its path.
func NewField(path, format string, args ...any) *Error {
	return &Error{Code: InvalidField, Text: path + " " + fmt.Sprintf(format, args...), Field: path}
}

// Of returns the refusal in an error, and whether there is one.
func Of(err error) (*Error, bool) {
	var r *Error
	ok := errors.As(err, &r)
	return r, ok
}
