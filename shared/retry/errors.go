package retry

import (
	"errors"
)

// ErrUnavailable is wrapped by errors of a dependency that cannot be reached or does not work. The request or message
// is not at fault and should be tried again until the dependency works; a message that a router of shared/bus handles
// never becomes a dead letter because of such an error.
var ErrUnavailable = errors.New("dependency unavailable")

// Unavailable wraps err, which came from a dependency, so that it matches ErrUnavailable. The parameter dependency is
// the dependency's name. For a store, this is the name of its health check, such as "postgres". For a service, this is
// the name of the service. Other dependencies have names that describe them, such as "event log".
func Unavailable(dependency string, err error) error { return &unavailableError{dependency, err} }

type unavailableError struct {
	dependency string
	err        error
}

func (e *unavailableError) Error() string { return e.dependency + " is unavailable: " + e.err.Error() }

func (e *unavailableError) Unwrap() []error { return []error{ErrUnavailable, e.err} }

// Dependency returns the name of the dependency that was passed to Unavailable, or "dependency" if Unavailable was not
// used.
func Dependency(err error) string {
	var unavailable *unavailableError
	if errors.As(err, &unavailable) {
		return unavailable.dependency
	}
	return "dependency"
}

// Permanent wraps an error that a retry cannot fix. A router of shared/bus does not repeat a handler that returns such
// an error.
func Permanent(err error) error { return &permanentError{err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

func (e *permanentError) Unwrap() error { return e.err }

// IsPermanent reports whether err wraps an error that was passed to Permanent.
func IsPermanent(err error) bool {
	var permanent *permanentError
	return errors.As(err, &permanent)
}
