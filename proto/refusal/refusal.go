// Package refusal defines the error of a refused request: a code for programs and a text for people.
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
	// Field is the path of the invalid field, or "" if the refusal is not about a field.
	Field string
	// RetryAfter is the time to wait before sending the request again; 0 if the refusal sets no time.
	RetryAfter time.Duration
	// TraceID is the id of the request's trace, for operators, or "" if it was not recorded.
	TraceID string
}

func (e *Error) Error() string { return e.Code + ": " + e.Text }

// New returns a refusal with a text for people.
func New(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// NewField returns a refusal of a field. The text follows the path of the field, and describes what is wrong.
func NewField(path, format string, args ...any) *Error {
	return &Error{Code: InvalidField, Text: path + " " + fmt.Sprintf(format, args...), Field: path}
}

// Of returns the refusal in an error, and reports whether there is one.
func Of(err error) (*Error, bool) {
	var r *Error
	ok := errors.As(err, &r)
	return r, ok
}
