package bus

import (
	"errors"
	"fmt"
)

// ErrUnavailable is wrapped by errors of a dependency that cannot be reached or does not do its work: the message is not
// at fault. A router calls the handler again for as long as that lasts, and sends nothing to the dead letters.
var ErrUnavailable = errors.New("dependency unavailable")

// Unavailable wraps err, which came from a dependency, so that it matches ErrUnavailable. The dependency is named as its
// health check is, such as "postgres".
func Unavailable(dependency string, err error) error { return &unavailableError{dependency, err} }

type unavailableError struct {
	dependency string
	err        error
}

func (e *unavailableError) Error() string { return e.dependency + " is unavailable: " + e.err.Error() }

func (e *unavailableError) Unwrap() []error { return []error{ErrUnavailable, e.err} }

// dependencyOf returns the name of the unavailable dependency.
func dependencyOf(err error) string {
	var unavailable *unavailableError
	if errors.As(err, &unavailable) {
		return unavailable.dependency
	}
	return "dependency"
}

// Permanent wraps an error that no retry can mend: the message goes to the dead letters at once.
func Permanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

func (e *permanentError) Unwrap() error { return e.err }

func isPermanent(err error) bool {
	var permanent *permanentError
	return errors.As(err, &permanent)
}

// errStopping is wrapped by errors of handlers that had no time to finish. Their messages come again, here or wherever
// their partition is assigned.
var errStopping = errors.New("stopping")

func stopping(err error) error {
	return fmt.Errorf("%w, the message will come again: %w", errStopping, err)
}

// isMessageBlameless reports whether the message is not at fault.
func isMessageBlameless(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, errStopping)
}
