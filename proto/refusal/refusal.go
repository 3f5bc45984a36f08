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

// Of finds the refusal in an error.
func Of(err error) (*Error, bool) {
	var r *Error
	ok := errors.As(err, &r)
	return r, ok
}
